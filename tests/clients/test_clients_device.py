"""A device alone: what it answers, that it does so from its own clips, what it keeps to itself."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from fedsim_clients import app as client_app
from fedsim_clients.device import Device, model_name
from fedsim_clients.identity import client_key, device_of
from fedsim_clients.runtime import CLIP_BYTES, REMEMBERED, open_runtime
from fedsim_server.planner import Planner
from flwr.app import Context, Message, RecordDict
from scipy.stats import spearmanr

from fedsim import load_personalized
from fedsim.base.cache import LRUCache
from fedsim.engine.flower_internals import new_context, server_identity, set_message_id
from fedsim.engine.nodes import nodes_of
from fedsim.engine.worker import load_app
from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.protocol.run_config import RunConfig
from fedsim.quant import modelfile
from fedsim.quant.bank import LayerBank, WeightCache
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import sense
from fedsim.run.single import CLIENT_APP
from fedsim.scenario import MethodSettings, load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.models.base import (
    own_tokens,
    public_clips,
    transcribe_clips,
    tuning_batches,
)
from fedsim.speech.scoring import count_errors, interval


@pytest.fixture
def scenario(study):
    return load_scenario(study.file, ["save_models=false"])


@pytest.fixture
def runtime(scenario, tmp_path):
    """A runtime of its own, with an empty bank and run folder."""
    open_runtime.cache_clear()
    yield open_runtime(RunConfig(scenario.model_dump_json(), tmp_path / "run"))
    open_runtime.cache_clear()


@pytest.fixture
def device(runtime):
    return Device(runtime, runtime.clients["ann"])


@pytest.fixture
def planner(runtime):
    weights = runtime.switch.full_weights()
    bank = LayerBank(weights, runtime.model.layers, "per_channel", runtime.weights.store)
    return Planner(runtime.scenario, runtime.sizes, bank)


@pytest.fixture
def candidates(device, planner):
    return planner.own(device.sense(m.SenseRequest("median")))


def clips_of(utterances):
    return [read_utterance(u) for u in utterances]


def test_sensing(device, runtime):
    summary = device.sense(m.SenseRequest("median"))
    model = runtime.model
    expected = sense(model, tuning_batches(model, clips_of(device.data.tuning), None))
    assert summary.sensitivity == tuple(expected.tolist())
    assert summary.client == "ann"
    assert summary.budget_bytes == int(0.0334 * 2**20)
    assert summary.bit_depths == tuple(range(2, 17))
    assert summary.clips == 3


@pytest.fixture
def whisper(study, tmp_path, model_folder):
    """A runtime with a seq2seq model, which labels its clips before it looks at its layers."""
    overrides = [f"model.id={model_folder('whisper')}", "clients.budget_mb=0.2"]
    scenario = load_scenario(study.file, overrides)
    open_runtime.cache_clear()
    yield open_runtime(RunConfig(scenario.model_dump_json(), tmp_path / "run"))
    open_runtime.cache_clear()


ASKED = m.SenseRequest("median", quantiles=True)


@pytest.mark.parametrize("kind", ["runtime", "whisper"])
def test_a_device_that_streams_the_model(kind, request):
    """It answers as one that holds the model, and the run's bank has every layer once."""
    runtime = request.getfixturevalue(kind)
    full, small = (Device(runtime, runtime.clients["ann"], mode) for mode in ("full", "streamed"))
    expected = full.sense(ASKED)
    runtime._recent.clear()
    assert not runtime.weights.store.folder.exists()
    assert small.sense(ASKED) == expected
    files = {path.stat().st_size for path in runtime.weights.store.folder.iterdir()}
    assert files == {4 * layer.n_weights for layer in runtime.model.layers}
    written = {path: path.stat().st_mtime_ns for path in runtime.weights.store.folder.iterdir()}
    assert len(written) == len(runtime.model.layers)
    assert Device(runtime, runtime.clients["bob"], "streamed").sense(ASKED) != expected
    assert written == {p: p.stat().st_mtime_ns for p in runtime.weights.store.folder.iterdir()}


@pytest.mark.parametrize("kind", ["runtime", "whisper"])
def test_a_device_that_senses_on_a_proxy(kind, request):
    runtime = request.getfixturevalue(kind)
    full, small = (Device(runtime, runtime.clients["ann"], mode) for mode in ("full", "proxy"))
    expected = np.array(full.sense(ASKED).sensitivity)
    found = np.array(small.sense(ASKED).sensitivity)
    assert (found != expected).all()
    assert spearmanr(found, expected).statistic > 0.98
    assert full.sense(ASKED).sensitivity == tuple(expected)


@pytest.mark.parametrize("mode", ["streamed", "proxy"])
def test_pseudo_labels_come_from_the_mode(mode, whisper, monkeypatch):
    """And are not those of another device of this process that holds the model otherwise."""
    heard = []

    def note(model, clips, language):
        (name, *_) = [layer.name for layer in model.layers]
        heard.append(model.module.get_submodule(name).weight.numel() > 0)
        return own_tokens(model, clips, language)

    monkeypatch.setattr("fedsim_clients.audio.own_tokens", note)
    for chosen in ("full", mode, "full", mode):
        Device(whisper, whisper.clients["ann"], chosen).sense(m.SenseRequest("median"))
    assert heard == [True, False]


def test_a_mode_ends_with_sensing(runtime):
    """What is evaluated is the model in full precision."""
    expected = Device(runtime, runtime.clients["ann"]).evaluate(m.Evaluation(True, ()))
    for mode in ("streamed", "proxy"):
        device = Device(runtime, runtime.clients["ann"], mode)
        device.sense(m.SenseRequest("median"))
        full = runtime.switch.full_weights()
        for name, weight in full.items():
            assert runtime.model.module.get_submodule(name).weight.data_ptr() == weight.data_ptr()
        assert device.evaluate(m.Evaluation(True, ())) == expected


def test_ranges_are_those_of_the_mode(runtime, candidates):
    """Observed layer by layer they are the same to the bit, on a proxy nearly."""
    forward = tuple(c for c in candidates if c.calibration != "hessian")
    assert {c.calibration for c in forward} >= {"cosine", "minmax"}

    def ranges(mode):
        device = Device(runtime, runtime.clients["ann"], mode)
        return np.array(device.personalize(m.Delivery(True, forward)).ranges)

    full = ranges("full")
    assert np.array_equal(ranges("streamed"), full, equal_nan=True)
    proxy = ranges("proxy")
    assert not np.array_equal(proxy, full, equal_nan=True)
    known = np.isfinite(full)
    assert np.corrcoef(proxy[known], full[known])[0, 1] > 0.99


@pytest.mark.parametrize("mode", ["streamed", "proxy"])
def test_gradients_need_the_whole_model_in_memory(runtime, candidates, mode):
    device = Device(runtime, runtime.clients["ann"], mode)
    with pytest.raises(FedsimError, match=r"'ann': .*hessian.* whole model .*minmax"):
        device.personalize(m.Delivery(False, candidates))


def test_an_unknown_mode(runtime):
    device = Device(runtime, runtime.clients["ann"], "steamed")
    with pytest.raises(FedsimError, match="there is no sensing mode 'steamed': did you mean 'str"):
        device.sense(m.SenseRequest("median"))


def test_a_profile_alone_reads_no_audio(device, monkeypatch):
    def read(*_, **__):
        raise AssertionError("audio was read")

    monkeypatch.setattr("fedsim_clients.audio.read_utterance", read)
    assert device.sense(m.SenseRequest("")).sensitivity == ()
    with pytest.raises(AssertionError, match="audio was read"):
        device.sense(m.SenseRequest("median"))


def test_test_clips_are_read_for_testing_only(device, candidates, monkeypatch):
    """Nor is a label: those of tuning clips are gone, those of test clips are for counting."""
    read = []
    monkeypatch.setattr(
        "fedsim_clients.audio.read_utterance",
        lambda u, **options: read.append(u) or read_utterance(u, **options),
    )
    monkeypatch.setattr(device.runtime, "clips", LRUCache(CLIP_BYTES))
    device.sense(m.SenseRequest("median"))
    device.personalize(m.Delivery(False, candidates))
    assert len(read) == len(device.data.tuning)  # each once
    assert set(read) == set(device.data.tuning)
    assert {u.text for u in read} == {None}
    read.clear()
    device.evaluate(m.Evaluation(True, ()))
    assert set(read) == set(device.data.test)


def test_an_unknown_measure(device):
    with pytest.raises(FedsimError, match="there is no sensitivity 'meadian': did you mean"):
        device.sense(m.SenseRequest("meadian"))


def test_personalizing(device, runtime, candidates, tmp_path):
    receipt = device.personalize(m.Delivery(False, candidates))
    assert receipt.client == "ann"
    assert receipt.file_bytes == tuple(runtime.sizes.total(c.bits) for c in candidates)
    assert max(receipt.file_bytes) <= runtime.devices["ann"].budget_bytes
    assert receipt.ranges == ()
    assert os.listdir(tmp_path / "run") == ["bank"]  # the files were weighed, and are gone


def test_personalizing_leaves_nothing_behind(device, candidates, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    device.personalize(m.Delivery(False, candidates))
    assert list(scratch.iterdir()) == []


def test_ranges_are_returned_on_request_alone(device, runtime, candidates):
    receipt = device.personalize(m.Delivery(True, candidates))
    layers = len(runtime.model.layers)
    assert len(receipt.ranges) == 2 * layers * len(candidates)
    table = np.array(receipt.ranges).reshape(len(candidates), layers, 2)
    assert (table[..., 0] <= 0).all()
    assert (table[..., 1] >= 0).all()
    by_name = dict(zip([c.name for c in candidates], table, strict=True))
    model = runtime.model
    seen = observe(model, tuning_batches(model, clips_of(device.data.tuning), None), rows=False)
    public = observe(model, tuning_batches(model, public_clips(), None), rows=False)
    for found, source in ((by_name["myqasr/minmax"], seen), (by_name["myqasr/none"], public)):
        for row, layer in zip(found, model.layers, strict=True):
            low, high = source[layer.name].low, source[layer.name].high
            np.testing.assert_allclose(row, (min(low, 0), max(high, 0)), rtol=1e-6)
    within = by_name["myqasr/cosine"] / by_name["myqasr/minmax"]
    assert (np.nan_to_num(within, nan=1.0) <= 1 + 1e-6).all()


def test_layers_that_look_rows_up_have_no_range(tmp_path, study):
    """NaN stands for none, on the way and in the file."""
    folder = toys.save(toys.whisper(tie_word_embeddings=False), tmp_path / "untied")
    overrides = [f"model.id={folder}", "clients.budget_mb=0.2", "save_models=true"]
    scenario = load_scenario(study.file, overrides)
    open_runtime.cache_clear()
    runtime = open_runtime(RunConfig(scenario.model_dump_json(), tmp_path / "run"))
    open_runtime.cache_clear()
    names = [layer.name for layer in runtime.model.layers]
    (table,) = [layer.name for layer in runtime.model.layers if layer.kind == "embedding"]
    bank = LayerBank(
        runtime.switch.full_weights(), runtime.model.layers, "per_channel", runtime.weights.store
    )
    device = Device(runtime, runtime.clients["ann"])
    summary = device.sense(m.SenseRequest("median"))
    candidates = Planner(scenario, runtime.sizes, bank).own(summary)[:3]
    receipt = device.personalize(m.Delivery(True, candidates))
    nan = np.isnan(receipt.ranges).reshape(3, len(names), 2)
    where = names.index(table)
    assert nan[:, where].all()
    assert nan.sum() == 6
    own = device.evaluate(m.Evaluation(False, candidates))
    width = 2 * len(names)
    given = tuple(
        replace(c, ranges=receipt.ranges[width * i : width * (i + 1)])
        for i, c in enumerate(candidates)
    )
    assert device.evaluate(m.Evaluation(False, given)) == own
    path = tmp_path / "run" / "models" / model_name("ann", candidates[0].name)
    assert modelfile.read(path, runtime.model.layers).ranges[where] is None
    assert table not in load_personalized(path).ranges


def test_evaluating(device, runtime, candidates):
    """The same counts as by hand; full precision first, then one of each in the order asked."""
    scores = device.evaluate(m.Evaluation(True, candidates))
    clips = clips_of(device.data.test)
    references = [u.text for u in device.data.test]
    counted = count_errors(references, transcribe_clips(runtime.model, clips))
    assert (scores.client, scores.clips) == ("ann", 3)
    assert (scores.errors[0], scores.words[0]) == (counted.errors, counted.words)
    assert (scores.char_errors[0], scores.chars[0]) == (counted.char_errors, counted.chars)
    assert scores.correct == ()
    sizes = tuple(runtime.sizes.total(c.bits) for c in candidates)
    assert scores.file_bytes == (runtime.switch.full_bytes(), *sizes)
    for name in ("errors", "words", "char_errors", "chars", "low", "high"):
        assert len(getattr(scores, name)) == 1 + len(candidates)
    backwards = device.evaluate(m.Evaluation(False, candidates[::-1]))
    assert backwards.errors == scores.errors[:0:-1]
    assert backwards.char_errors == scores.char_errors[:0:-1]
    assert device.evaluate(m.Evaluation(False, ())).errors == ()


def test_intervals_hold_the_rate_and_are_paired(device, candidates):
    scores = device.evaluate(m.Evaluation(True, candidates))
    for low, high, errors, words in zip(
        scores.low, scores.high, scores.errors, scores.words, strict=True
    ):
        assert low <= errors / words <= high
    again = device.evaluate(m.Evaluation(False, candidates[:1]))
    assert (again.low[0], again.high[0]) == (scores.low[1], scores.high[1])


def test_equal_models_are_tested_once(device, candidates, monkeypatch):
    counted = []

    def transcribe(*args):
        counted.append(1)
        return transcribe_clips(*args)

    monkeypatch.setattr("fedsim_clients.device.transcribe_clips", transcribe)
    one = candidates[0]
    twins = (one, replace(one, name="again"), replace(one, tuned_on="bob"))
    scores = device.evaluate(m.Evaluation(True, twins))
    assert len(counted) == 2
    assert scores.errors[1] == scores.errors[2] == scores.errors[3]


def test_a_model_with_given_ranges(device, runtime, candidates):
    """Ranges that came with a model are used as they are: those of its own are no change."""
    index = [c.name for c in candidates].index("myqasr/cosine")
    one = candidates[index]
    width = 2 * len(runtime.model.layers)
    receipt = device.personalize(m.Delivery(True, (one,)))
    own = device.evaluate(m.Evaluation(False, (one,)))
    given = device.evaluate(m.Evaluation(False, (replace(one, ranges=receipt.ranges),)))
    assert given == own
    narrow = tuple(x / 50 for x in receipt.ranges)
    other = device.evaluate(m.Evaluation(False, (replace(one, ranges=narrow),)))
    assert other.char_errors != own.char_errors
    for ranges in ((0.0,), (0.0,) * (width - 1), (0.0,) * (width + 2)):
        with pytest.raises(
            FedsimError,
            match=rf"client 'ann' was sent {len(ranges)} numbers for the activation ranges of 19",
        ):
            device.evaluate(m.Evaluation(False, (replace(one, ranges=ranges),)))


def test_full_precision_is_in_place_between_messages(device, runtime, candidates, monkeypatch):
    before = {k: t.clone() for k, t in runtime.model.module.state_dict().items()}

    def unchanged():
        for key, tensor in runtime.model.module.state_dict().items():
            assert torch.equal(tensor, before[key])
        modules = list(runtime.model.module.modules())
        assert not any(x._forward_pre_hooks or x._forward_hooks for x in modules)

    first = device.evaluate(m.Evaluation(True, candidates))
    unchanged()
    device.personalize(m.Delivery(False, candidates))
    unchanged()
    calls = []

    def failing(*args):
        calls.append(1)
        if len(calls) > 1:
            raise MemoryError
        return transcribe_clips(*args)

    monkeypatch.setattr("fedsim_clients.device.transcribe_clips", failing)
    with pytest.raises(MemoryError):
        device.evaluate(m.Evaluation(True, candidates))
    unchanged()
    monkeypatch.undo()
    assert device.evaluate(m.Evaluation(True, candidates)) == first


def test_clients_of_one_process_do_not_disturb_each_other(runtime, planner):
    devices = [Device(runtime, runtime.clients[key]) for key in ("ann", "bob")]
    own = [planner.own(d.sense(m.SenseRequest("median")))[:6] for d in devices]
    alone = [d.evaluate(m.Evaluation(True, c)) for d, c in zip(devices, own, strict=True)]
    runtime._recent.clear()
    again = [d.evaluate(m.Evaluation(True, c)) for d, c in [*zip(devices, own, strict=True)][::-1]]
    assert again[::-1] == alone


def test_what_is_forgotten_is_made_again(device, runtime, candidates, monkeypatch):
    first = device.evaluate(m.Evaluation(False, candidates))
    monkeypatch.setattr(runtime, "REMEMBERED", 1)
    runtime._recent.clear()
    runtime.weights = WeightCache(runtime.weights.store, limit=1)  # no layer is kept but the last
    runtime.clips, runtime.seen = LRUCache(1), LRUCache(1)
    assert device.evaluate(m.Evaluation(False, candidates)) == first
    assert len(runtime._recent) == 1


def test_what_is_remembered_is_bounded(runtime):
    for i in range(REMEMBERED + 50):
        assert runtime.remember(i, lambda i=i: 2 * i) == 2 * i
    assert len(runtime._recent) == REMEMBERED
    assert runtime.remember(REMEMBERED + 49, lambda: 1 / 0) == 2 * (REMEMBERED + 49)
    runtime.remember(50, lambda: None)
    assert runtime.remember(50, lambda: "made again") == 100


def test_calibrating_looks_at_the_clips_once(device, candidates, monkeypatch):
    """All candidates of a client share one look, and evaluation repeats none of it."""
    looks = []
    monkeypatch.setattr(
        "fedsim_clients.audio.observe",
        lambda *args, **options: looks.append(1) or observe(*args, **options),
    )
    device.personalize(m.Delivery(False, candidates))
    assert len(looks) == 2  # its own clips, and the public ones
    device.evaluate(m.Evaluation(False, candidates))
    assert len(looks) == 2


def test_sensing_and_calibrating_hear_the_clips_once(runtime, planner):
    """Unless a calibration needs gradients, one forward pass a batch serves both."""
    method = MethodSettings(allocation="myqasr", calibration=("minmax", "cosine"))
    forward = runtime.scenario.model_copy(update={"methods": (method,)})
    device = Device(replace(runtime, scenario=forward), runtime.clients["ann"])
    planner = replace(planner, scenario=forward)
    passes = []
    handle = runtime.model.module.register_forward_hook(lambda *_: passes.append(1))
    candidates = planner.own(device.sense(m.SenseRequest("median", quantiles=True)))
    batches = len(passes)
    assert batches > 0
    once = device.personalize(m.Delivery(True, candidates))
    assert len(passes) == batches
    handle.remove()
    device.runtime.seen = LRUCache(0)  # the same, had it been forgotten
    device.runtime._recent.clear()
    assert device.personalize(m.Delivery(True, candidates)) == once


def test_a_model_over_its_budget_is_not_passed_on(device, runtime, planner):
    rich = replace(device.sense(m.SenseRequest("median")), budget_bytes=10**6)
    (first, *_) = planner.own(rich)
    with pytest.raises(
        FedsimError,
        match=r"client 'ann': the file of uniform/none takes [\d,]+ bytes, more than the",
    ):
        device.personalize(m.Delivery(False, (first,)))


def test_a_blob_that_is_missing_or_damaged(device, runtime, candidates):
    store = runtime.weights.store
    name = candidates[0].blobs[:32].hex()
    path = store.folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FedsimError, match=rf"blob {name[:12]} in \S+ is damaged; delete the file"):
        device.evaluate(m.Evaluation(False, candidates[:1]))
    path.unlink()
    with pytest.raises(
        FedsimError, match=rf"blob {name[:12]} cannot be read from .+: No such file"
    ):
        device.personalize(m.Delivery(False, candidates[:1]))


def test_models_are_saved_where_the_scenario_says(study, tmp_path):
    scenario = load_scenario(study.file, ["save_models=true"])
    open_runtime.cache_clear()
    runtime = open_runtime(RunConfig(scenario.model_dump_json(), tmp_path / "run"))
    open_runtime.cache_clear()
    bank = LayerBank(
        runtime.switch.full_weights(), runtime.model.layers, "per_channel", runtime.weights.store
    )
    device = Device(runtime, runtime.clients["bob"])
    planner = Planner(scenario, runtime.sizes, bank)
    candidates = planner.own(device.sense(m.SenseRequest("median")))
    receipt = device.personalize(m.Delivery(False, candidates))
    files = sorted(os.listdir(tmp_path / "run" / "models"))
    assert files == sorted(model_name("bob", c.name) for c in candidates)
    for candidate, size in zip(candidates, receipt.file_bytes, strict=True):
        path = tmp_path / "run" / "models" / model_name("bob", candidate.name)
        assert os.path.getsize(path) == size
        assert modelfile.read(path, runtime.model.layers).manifest.bits == candidate.bits


def test_file_names():
    assert model_name("ann", "uniform") == "ann-uniform.safetensors"
    odd = [("../ann", "x/y"), ("..-ann", "x/y"), ("../ann", "x_y"), ("ann", "a/b"), ("ann", "a_b")]
    names = [model_name(*pair) for pair in odd]
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name
        assert not name.startswith(".") or name.strip(".-") != ""


def context(runtime, client="ann"):
    run = RunConfig(runtime.scenario.model_dump_json(), runtime.run_dir).to_flower()
    (node,) = nodes_of([client]).values()
    return new_context(node, run, b"")


def test_a_node_is_a_device(runtime):
    device = device_of(context(runtime))
    assert device.runtime is runtime  # one runtime a process
    assert device.data.key == "ann"
    with pytest.raises(FedsimError, match="client 'zoe' is not in the corpus of this scenario"):
        device_of(context(runtime, "zoe"))


def test_whom_a_node_plays():
    keys = ["speaker 9", "speaker 10"]
    assert client_key({"client": "zoe", "partition-id": 0, "num-partitions": 9}, keys) == "zoe"
    in_order = [client_key({"partition-id": i, "num-partitions": 2}, keys) for i in (0, 1)]
    assert in_order == ["speaker 10", "speaker 9"]
    with pytest.raises(FedsimError, match=r"3 SuperNodes and the scenario 2 .*num-supernodes=2"):
        client_key({"partition-id": 0, "num-partitions": 3}, keys)
    with pytest.raises(FedsimError, match="""start it with --node-config 'client="KEY"'"""):
        client_key({}, keys)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"client": "zoe"}, "client 'zoe' is not in the corpus of this scenario"),
        ({"client": "ann"}, "client 'ann': the message from the server is no SenseRequest"),
        ({}, "this SuperNode does not say which client it plays"),
    ],
)
def test_a_mistake_is_answered_in_every_runtime(runtime, node, reason):
    run = RunConfig(runtime.scenario.model_dump_json(), runtime.run_dir).to_flower()
    with server_identity():
        asked = Message(RecordDict(), dst_node_id=5, message_type=m.SENSE)
    set_message_id(asked, "1")
    reply = client_app.app(asked, Context(1, 5, node, RecordDict(), run))
    assert reply.error.code == 2
    assert reply.error.reason.startswith(reason)


def test_the_flower_app(runtime):
    """Found by its reference; it keeps nothing in the context's state."""
    assert load_app(CLIENT_APP) is client_app.app
    state = context(runtime)
    assert isinstance(state, Context)
    device_of(state).sense(m.SenseRequest("median"))
    assert state.state == RecordDict()


def test_an_interval_is_the_devices_own(device, runtime):
    """Counts of single clips stay on the device: what leaves is the interval of all of them."""
    from fedsim.base.seeds import client_rng

    scores = device.evaluate(m.Evaluation(True, ()))
    clips = clips_of(device.data.test)
    heard = transcribe_clips(runtime.model, clips)
    counts = [count_errors([u.text], [h]) for u, h in zip(device.data.test, heard, strict=True)]
    rng = client_rng(runtime.scenario.seed, "ann", "interval")
    assert (scores.low[0], scores.high[0]) == interval(counts, rng)
