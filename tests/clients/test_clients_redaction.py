"""Every byte that clients hand to the Grid, under every release: what is in it, and what is not."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from flwr.app import ConfigRecord, RecordDict

from fedsim.engine.flower_internals import unpack
from fedsim.engine.inprocess import InProcessGrid
from fedsim.errors import AudioError, FedsimError
from fedsim.privacy.secure_aggregation import ciphers, wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes
from fedsim.quant.sensitivity import sense
from fedsim.run.single import run_scenario
from fedsim.scenario import Scenario
from fedsim.speech.clips import ClientData, Utterance, read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import own_tokens, transcribe_clips, tuning_batches
from fedsim.study.model import load_study_model

RELEASES = ("values", "quantized", "noisy", "ranks", "plan", "cohort", "none")
REPLIES = {
    m.SENSE: m.Summary,
    m.PERSONALIZE: m.Receipt,
    m.EVALUATE: m.Scores,
    m.JOIN: wire.Keys,
    m.SHARE: wire.Envelopes,
    m.MASK: wire.Masked,
    m.UNMASK: wire.Shares,
}
TUNING, TEST = 3, 4


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, model_folder, speech):
    """A model and a release -> a scenario of five speakers, who say what the model hears."""

    def make(model, release, study=False):
        def read(clips, language):
            heard = transcribe_clips(speech(model), clips)
            return [f"{text} {toys.WORDS[i % 10]}" for i, text in enumerate(heard)]

        corpus = toys.write_corpus(tmp_path_factory.mktemp("clips"), each=7, read=read)
        return Scenario.model_validate(
            {
                "name": "toy",
                "model": {"id": str(model_folder(model)), "batch_size": 4},
                "corpus": {
                    "path": str(corpus),
                    "group_by": "speaker",
                    "tuning_clips": TUNING,
                    "test_clips": TEST,
                },
                "clients": {"budget_mb": 0.07, "bit_depths": [2, 4, 8]},
                "methods": ["fp32", {"allocation": "myqasr", "calibration": ["minmax"]}],
                "study": study,
                "engine": {"kind": "inprocess"},
                "privacy": {
                    "release": release,
                    "public_voices": 2,
                    "bounds": [0.0, 1.0],
                    "epsilon": 50.0,
                    "delta": 0.01,
                    "cohort": {"size": 5},
                },
            }
        )

    return make


@pytest.fixture
def recorded(monkeypatch):
    """All replies that clients hand over while this is there: type of the request, and bytes."""
    found = []
    finish = InProcessGrid._finish

    def record(self, job, reply, state):
        found.append((unpack(job.request).metadata.message_type, reply))
        finish(self, job, reply, state)

    monkeypatch.setattr(InProcessGrid, "_finish", record)
    return found


def secrets_of(scenario):
    """What must never leave a device: label -> bytes that are no accident where they are found."""
    model = load_study_model(scenario)
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    private = {}
    for key, client in clients.items():
        clips = {u: read_utterance(u) for u in (*client.tuning, *client.test)}
        for utterance, clip in clips.items():
            for at in range(0, len(clip) - 8, 97):
                private[f"audio of {key}", utterance.key, at] = clip[at : at + 4].tobytes()
                whole = np.rint(clip[at : at + 8] * 32767).astype("<i2")
                private[f"16-bit audio of {key}", utterance.key, at] = whole.tobytes()
            if utterance.text:
                private[f"text of {key}", utterance.key, 0] = utterance.text.encode()
            heard = transcribe_clips(model, [clip])[0]
            if len(heard) > 8:
                private[f"transcript of {key}", utterance.key, 0] = heard.encode()
            tokens = own_tokens(model, [clip])
            if tokens is not None:
                for kind in ("<i8", "<i4"):
                    row = tokens[0].numpy().astype(kind)[:8]
                    private[f"tokens of {key}, {kind}", utterance.key, 0] = row.tobytes()
            for name, value in per_clip(model, clip, tokens).items():
                private[f"{name} of {key}", utterance.key, 0] = value
    return private


def per_clip(model, clip, tokens):
    """What one clip alone does to the model: activations, and sensitivities as they are sent."""
    seen = {}

    def look(module, inputs, output):
        out = output if isinstance(output, torch.Tensor) else output[0]
        seen.setdefault(len(seen), out.detach().float().numpy().ravel())

    layers = [model.module.get_submodule(a.name) for a in model.layers]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    with torch.no_grad():
        for batch in tuning_batches(model, [clip], tokens):
            model.forward(batch)
    for hook in hooks:
        hook.remove()
    found = {f"activation {i}": x[:3].tobytes() for i, x in seen.items() if np.abs(x[:3]).min() > 0}
    # A median is the size of one activation, and may by chance be that of one clip: of two layers.
    alone = sense(model, tuning_batches(model, [clip], tokens), "median").astype("<f8")
    return found | {f"sensitivity {i}": alone[i : i + 2].tobytes() for i in range(len(alone) - 1)}


def leaks(replies, private):
    """The labels of what is found, in these bytes."""
    data = b"".join(reply for _, reply in replies)
    return {label for label, secret in private.items() if secret in data}


def upward_numbers(record):
    """Field -> how many numbers or bytes a reply holds."""
    values = dict(record["message"])
    return {
        k: len(v) if isinstance(v, list | bytes | str) else 1
        for k, v in values.items()
        if k != "protocol"
    }


@pytest.fixture(scope="module")
def private(scenario):
    return {model: secrets_of(scenario(model, "values")) for model in ("ctc-group", "whisper")}


@pytest.mark.parametrize("model", ["ctc-group", "whisper"])
@pytest.mark.parametrize("release", RELEASES)
def test_nothing_private_is_in_the_bytes(scenario, recorded, private, tmp_path, release, model):
    chosen = scenario(model, release)
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    assert leaks(recorded, private[model]) == set()
    layers = len(load_study_model(chosen).layers)
    for kind, reply in recorded:
        message = unpack(reply)
        answer = codec.from_record(REPLIES[kind], message.content, "a client")
        numbers = upward_numbers(message.content)
        if isinstance(answer, m.Summary):
            assert numbers["sensitivity"] == (layers if release == "values" else 0)
            assert numbers["quantiles"] == numbers["workload"] == 0
            most = {"quantized": 0.5, "noisy": 4, "ranks": 1.5, "plan": 0.25}.get(release, 0)
            assert numbers["payload"] <= most * layers + 1
        elif isinstance(answer, m.Scores):
            # Two models were tested: sums over all clips, and nothing of a single one.
            assert {numbers[k] for k in ("errors", "words", "low", "high", "file_bytes")} == {2}
            assert numbers["clip_wrong"] == numbers["clip_of"] == numbers["workload"] == 0
        elif isinstance(answer, m.Receipt):
            assert (numbers["file_bytes"], numbers["ranges"]) == (1, 0)
        assert len(reply) <= max_message_bytes(REPLIES[kind], layers, models=2, members=9)
    asked = {kind for kind, _ in recorded}
    group = {m.JOIN, m.SHARE, m.MASK, m.UNMASK}
    assert asked == {m.SENSE, m.PERSONALIZE, m.EVALUATE} | (group if release == "cohort" else set())


def test_counts_of_each_clip_travel_in_a_study_and_its_quantiles_beside_values_only(
    scenario, recorded, tmp_path
):
    run_scenario(scenario("ctc-group", "ranks", study=True), tmp_path / "a")
    numbers = [(k, upward_numbers(unpack(reply).content)) for k, reply in recorded]
    assert {n["clip_wrong"] for k, n in numbers if k == m.EVALUATE} == {2 * TEST}
    assert {n["quantiles"] for k, n in numbers if k == m.SENSE} == {0}


def test_the_search_finds_what_is_there(private):
    """Of each kind one secret, hidden among other bytes, is found."""
    for model, secrets in private.items():
        kinds = {}
        for label, secret in secrets.items():
            kinds.setdefault(label[0].split(" of ")[0].split()[0], (label, secret))
        wanted = {"audio", "16-bit", "text", "activation", "sensitivity"}
        assert wanted | ({"tokens"} if model == "whisper" else set()) <= set(kinds)
        for label, secret in kinds.values():
            hidden = bytes(100) + secret + b"more"
            assert label in leaks([(m.SENSE, hidden)], {label: secret, "not there": b"absent"})


def test_no_secret_of_a_group_is_written_or_said(scenario, tmp_path, monkeypatch, capfd, caplog):
    drawn, draw = [], ciphers.token_bytes

    def remember(n):
        drawn.append(draw(n))
        return drawn[-1]

    monkeypatch.setattr(ciphers, "token_bytes", remember)
    caplog.set_level("DEBUG")
    result = run_scenario(scenario("ctc-group", "cohort"), tmp_path / "run")
    said = capfd.readouterr()
    written = b"".join(f.read_bytes() for f in result.folder.path.rglob("*") if f.is_file())
    everything = written + (said.out + said.err + caplog.text).encode()
    secrets = [secret for secret in drawn if len(secret) == ciphers.SECRET_BYTES]
    assert len(secrets) == 3 * len(toys.SPEAKERS)
    for secret in secrets:
        assert secret not in everything
        assert secret.hex().encode() not in everything
        assert repr(secret).encode() not in everything


def data_of(tmp_path):
    path = tmp_path / "home of ann" / "secret.wav"
    tuning = (Utterance("secret.wav", path), Utterance("b/2.wav", tmp_path / "b/2.wav"))
    test = (Utterance("c/3.wav", tmp_path / "c/3.wav", text="call my doctor"),)
    return ClientData("ann", tuning, test), path


def test_reasons_name_clips_by_number(tmp_path):
    data, path = data_of(tmp_path)
    for text, told in (
        (
            f"audio file {path} is empty; leave it out",
            "client 'ann': tuning clip 1 is empty; leave",
        ),
        (f"client 'ann': {tmp_path}/b/2.wav: no", "client 'ann': tuning clip 2: no"),
        ("the label 'call my doctor' is no class", "client 'ann': the label the text of test clip"),
        ("see /etc/secret/file.txt, or ~/notes", "client 'ann': see a local file, or a local file"),
        ("3 / 4 of 1/2 clips", "client 'ann': 3 / 4 of 1/2 clips"),
    ):
        reason = redaction.redacted_reason(AudioError(text), "ann", m.SENSE, data)
        assert reason.startswith(told)
        assert str(tmp_path) not in reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "cannot read /home/anna smith/My Calls/doctor visit.wav: no",
            "cannot read a local file: no",
        ),
        ("file C:\\Users\\Anna Smith\\x.wav bad", "file a local file bad"),
        ("data/alice/secret.csv is broken", "a local file is broken"),
        ("'data/my calls/a b.tar.gz' is broken", "a local file is broken"),
        ('"/home/anna smith" is no folder', "a local file is no folder"),
        ("/home/anna smith/calls is empty", "a local file is empty"),
        ("../anna/notes, ~anna/notes: no", "a local file, a local file: no"),
        ("/home/a.b c/My d.wav, no", "a local file a local file, no"),
        (
            "the file of 'myqasr/minmax' takes 3 / 4 of 1/2",
            "the file of 'myqasr/minmax' takes 3 / 4 of 1/2",
        ),
        ("set privacy.budget to 3.5 or 1e-5", "set privacy.budget to 3.5 or 1e-5"),
    ],
)
def test_paths_stay_whole_with_their_spaces(tmp_path, text, told):
    data, _ = data_of(tmp_path)
    assert (
        redaction.redacted_reason(FedsimError(text), "ann", m.SENSE, data)
        == f"client 'ann': {told}"
    )


def test_of_a_client_whose_clips_are_not_known_no_sentence_is_told():
    reason = redaction.redacted_reason(
        FedsimError("audio file call my doctor"), "ann", m.SENSE, None
    )
    assert reason == "client 'ann' failed in query.sense: FedsimError in another's code"


def test_reasons_of_other_errors_tell_their_type_alone(tmp_path):
    data, path = data_of(tmp_path)
    try:
        float("call my doctor")
    except ValueError as error:
        reason = redaction.redacted_reason(error, "ann", m.EVALUATE, data)
    assert reason.startswith("client 'ann' failed in evaluate.candidates: ValueError in tests/")
    assert "doctor" not in reason
    error = FileNotFoundError(2, "No such file or directory", str(path))
    reason = redaction.redacted_reason(error, "ann", m.SENSE, None)
    assert "FileNotFoundError (No such file or directory) in another's code" in reason
    assert len(redaction.redacted_reason(FedsimError("x" * 9_999), "ann", m.SENSE, data)) == 1_000


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (m.Summary, m.Summary("a", 1, (2,), 3, tuple(np.ones(40)), tuple(np.ones(40 * 33)))),
        (m.Receipt, m.Receipt("a", (1, 2), tuple(np.ones(2 * 40 * 2)))),
        (m.Scores, m.Scores("a", 3, *[(1, 2)] * 5, (), (0.1, 0.2), (0.1, 0.2), (1,) * 6, (1,) * 6)),
        (wire.Keys, wire.Keys(1, bytes(32), bytes(32))),
        (wire.Envelopes, wire.Envelopes((1,) * 8, (bytes(60),) * 8)),
        (wire.Masked, wire.Masked(bytes(160))),
        (wire.Shares, wire.Shares((1,) * 9, (bytes(16),) * 9)),
    ],
)
def test_what_is_larger_than_its_type_can_be_is_refused_unread(kind, message):
    most = max_message_bytes(kind, 40, models=2, clips=3, members=9)
    check_size(kind, codec.to_record(message), most, "client 'a'")
    record = codec.to_record(message)
    record["message"]["more"] = bytes(most)
    with pytest.raises(FedsimError, match=rf"from client 'a' is refused unread: .* {most:,}$"):
        check_size(kind, record, most, "client 'a'")


def test_a_large_reply_is_refused_with_its_sender(scenario, tmp_path, monkeypatch):
    from fedsim_clients import device

    sensing = device.Device.sense

    def flooded(self, request):
        answer = sensing(self, request)
        if self.data.key != "bob":
            return answer
        return m.Summary(**{**vars(answer), "quantiles": (0.0,) * 1_000_000})

    monkeypatch.setattr(device.Device, "sense", flooded)
    result = run_scenario(scenario("ctc-group", "values"), tmp_path / "run")
    (failure,) = result.failures
    assert (failure.client, failure.outcome) == ("bob", "quarantined")
    assert "the message from client 'bob' is refused unread: it has 8,000," in failure.reason


class _Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_in_a_message_is_bytes_and_nothing_else():
    record = codec.to_record(m.Summary("a", 1, (2,), 3, ()))
    record["message"]["payload"] = pickle.dumps(_Evil())
    assert codec.from_record(m.Summary, record, "client 'a'").payload == pickle.dumps(_Evil())
    with pytest.raises(FedsimError, match="client 'a' is no Summary"):
        codec.from_record(
            m.Summary,
            RecordDict({"message": ConfigRecord({"x": pickle.dumps(_Evil())})}),
            "client 'a'",
        )


def test_nothing_of_ours_unpickles():
    """Model files are safetensors and our own format; messages are protobuf."""
    loaders = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    top = Path(__file__).parents[1]
    files = [f for room in ("fedsim", "clients", "server") for f in (top / room).rglob("*.py")]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & loaders, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "torch.load", file
                assert "allow_pickle" not in {k.arg for k in node.keywords}, file
