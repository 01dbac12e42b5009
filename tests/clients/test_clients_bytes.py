"""Every byte that clients hand to the Grid, under every release: what is in it, and what is not."""

import ast
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import paper
import pytest
import torch
import toys
from flwr.app import ConfigRecord, RecordDict
from own_engine import PassingGrid

from fedsim.engine.flower_internals import pack, unpack
from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import ciphers, wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import max_message_bytes
from fedsim.quant.sensitivity import sense
from fedsim.runner.single import run_scenario
from fedsim.scenario import Scenario
from fedsim.speech.clips import read_utterance
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

    @cache
    def recordings(model):
        def read(clips, language):
            heard = transcribe_clips(speech(model), clips)
            return [f"{text} {toys.WORDS[i % 10]}" for i, text in enumerate(heard)]

        return toys.write_corpus(tmp_path_factory.mktemp("clips"), each=7, read=read)

    def make(model, release, study=False, engine="own"):
        return Scenario.model_validate(
            {
                "name": "toy",
                "model": {"id": str(model_folder(model)), "batch_size": 4},
                "corpus": {
                    "path": str(recordings(model)),
                    "group_by": "speaker",
                    "tuning_clips": TUNING,
                    "test_clips": TEST,
                },
                "clients": {"budget_mb": 0.07, "bit_depths": [2, 4, 8]},
                "quantization": paper.QUANTIZATION,
                "methods": ["fp32", {"allocation": "myqasr", "calibration": ["minmax"]}],
                "study": study,
                "engine": {"kind": engine},
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


class Recorder(PassingGrid):
    """Records every reply before the server has it: type of the request, and all its bytes."""

    def __init__(self, grid, found):
        super().__init__(grid)
        self.found, self.kinds = found, {}

    def push(self, message):
        message_id = super().push(message)
        self.kinds[message_id] = message.metadata.message_type
        return message_id

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            self.found.append((self.kinds.pop(reply.metadata.reply_to_message_id), pack(reply)))
        return replies


@pytest.fixture
def recorded(engine):
    """All replies that clients hand over while this is there; a run answers all it is sent."""
    found = []
    recorders = []

    def wrap(grid):
        recorders.append(Recorder(grid, found))
        return recorders[-1]

    engine.wrap = wrap
    yield found
    assert all(not recorder.kinds for recorder in recorders)


def secrets_of(scenario):
    """What must never leave a device: label -> bytes that are no accident where they are found."""
    model = load_study_model(scenario).model
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
    outputs = {}

    def note(module, inputs, output):
        out = output if isinstance(output, torch.Tensor) else output[0]
        outputs.setdefault(len(outputs), out.detach().float().numpy().ravel())

    layers = [model.module.get_submodule(layer.name) for layer in model.layers]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        for batch in tuning_batches(model, [clip], tokens):
            model.forward(batch)
    for hook in hooks:
        hook.remove()
    found = {
        f"activation {i}": x[:3].tobytes() for i, x in outputs.items() if np.abs(x[:3]).min() > 0
    }
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
    models = ("ctc-group", "whisper")
    return {model: secrets_of(scenario(model, "values", engine="inprocess")) for model in models}


@pytest.mark.parametrize(
    ("model", "release"),
    [
        *(("ctc-group", release) for release in RELEASES),
        *(("whisper", release) for release in ("values", "cohort", "none")),
        *(
            pytest.param("whisper", release, marks=pytest.mark.slow)
            for release in ("quantized", "noisy", "ranks", "plan")
        ),
    ],
)
def test_nothing_private_is_in_the_bytes(scenario, recorded, private, tmp_path, release, model):
    chosen = scenario(model, release)
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    assert leaks(recorded, private[model]) == set()
    layers = len(load_study_model(chosen).model.layers)
    for kind, reply in recorded:
        message = unpack(reply)
        answer = codec.from_record(REPLIES[kind], message.content, "a client")
        numbers = upward_numbers(message.content)
        if isinstance(answer, m.Summary):
            assert numbers["sensitivity"] == (layers if release == "values" else 0)
            assert numbers["quantiles"] == numbers["workload"] == 0
            per_layer = {"quantized": 0.5, "noisy": 4, "ranks": 1.5, "plan": 0.25}.get(release, 0)
            assert numbers["payload"] <= per_layer * layers + 1
        elif isinstance(answer, m.Scores):
            # Two models were tested: sums over all clips, and nothing of a single one.
            assert {numbers[k] for k in ("errors", "words", "low", "high", "file_bytes")} == {2}
            assert numbers["clip_wrong"] == numbers["clip_of"] == numbers["workload"] == 0
            loops = {numbers[k] for k in ("looped", "looped_errors", "looped_words")}
            assert loops == {2 if model == "whisper" else 0}
        elif isinstance(answer, m.Receipt):
            assert (numbers["file_bytes"], numbers["ranges"], numbers["blobs"]) == (1, 0, 0)
        assert len(reply) <= max_message_bytes(REPLIES[kind], layers, models=2, members=9)
    kinds = {kind for kind, _ in recorded}
    group = {m.JOIN, m.SHARE, m.MASK, m.UNMASK}
    assert kinds == {m.SENSE, m.PERSONALIZE, m.EVALUATE} | (group if release == "cohort" else set())


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


def test_no_secret_of_a_group_is_written_or_printed(scenario, engine, tmp_path, capfd, caplog):
    secrets = []

    def look(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == m.JOIN:
            (state,) = context.state.config_records.values()
            secrets.extend(state[name] for name in ("seal_secret", "mask_secret", "seed"))
        return reply

    engine.mods = [look]
    caplog.set_level("DEBUG")
    result = run_scenario(scenario("ctc-group", "cohort"), tmp_path / "run")
    printed = capfd.readouterr()
    written = b"".join(f.read_bytes() for f in result.folder.path.rglob("*") if f.is_file())
    everything = written + (printed.out + printed.err + caplog.text).encode()
    assert {len(secret) for secret in secrets} == {ciphers.SECRET_BYTES}
    assert len(set(secrets)) == len(secrets) == 3 * len(toys.SPEAKERS)
    for secret in secrets:
        assert secret not in everything
        assert secret.hex().encode() not in everything
        assert repr(secret).encode() not in everything


class _Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_in_a_message_is_bytes_and_nothing_else():
    record = codec.to_record(m.Summary("a", 1, (2,), 3, ()))
    record["message"]["payload"] = pickle.dumps(_Evil())
    assert codec.from_record(m.Summary, record, "client 'a'").payload == pickle.dumps(_Evil())
    spoiled = RecordDict({"message": ConfigRecord({"x": pickle.dumps(_Evil())})})
    with pytest.raises(FedsimError, match="client 'a' is not a valid Summary"):
        codec.from_record(m.Summary, spoiled, "client 'a'")


def test_nothing_of_ours_unpickles():
    """Model files are safetensors and our own format; messages are protobuf."""
    loaders = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    top = Path(__file__).parents[2]
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
