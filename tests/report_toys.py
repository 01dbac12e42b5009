"""Small run folders, written straight into a ledger: no model, no audio."""

from __future__ import annotations

import json

import paper

from fedsim.results.folder import create_run, write_results
from fedsim.results.ledger import Ledger
from fedsim.results.records import Log, Release
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.results.timed import write_round
from fedsim.scenario.schema import Scenario

MB = 2**20
LAYERS = ["conv.0", "encoder.0.attention", "encoder.0.ffn", "lm_head"]
BITS = {"fp32": (), "uniform": (5, 5, 5, 5)}
MIXED = (6, 5, 4, 5)


def model(client, method, tuned_on, wrong, of=None, budget=40.0, mb=39.5, bits=None, study=True):
    """One model that a client tested: `wrong[i]` of `of[i]` words, or of a clip if `of` is None."""
    allocation, _, calibration = method.partition("/")
    full = method == "fp32"
    plan = BITS.get(allocation, MIXED) if bits is None else bits
    mean = 32.0 if full else sum(plan) / len(plan)
    clips, errors = len(wrong), sum(wrong)
    if of is None:
        measured = {"correct": clips - errors, "accuracy": 1 - errors / clips}
        value = 1 - errors / clips
    else:
        measured = {"errors": errors, "words": sum(of), "wer": errors / sum(of)}
        value = errors / sum(of)
    counts = dict.fromkeys(
        ["errors", "words", "wer", "char_errors", "chars", "cer", "correct", "accuracy"]
    )
    row = Row(
        client=client,
        method=method,
        allocation=allocation,
        calibration=calibration or "-",
        rounding="-" if full else "nearest",
        moments="-",
        tuned_on=tuned_on,
        budget_bytes=round(budget * MB),
        file_bytes=round((275.0 if full else mb) * MB),
        mean_bits=mean,
        clips=clips,
        plan_sha256="",
        low=max(0.0, value - 0.1),
        high=value + 0.1,
        **{**counts, **measured},
    )
    kept = (tuple(wrong), tuple(of or [1] * clips)) if study else ((), ())
    return row, Plan(client, method, tuned_on, plan, *kept)


def scenario(name="toy", **more):
    data = {
        "name": name,
        "model": {"id": "org/model"},
        "corpus": {"path": "org/clips", "group_by": "speaker"},
        "clients": {"budget_mb": 40.0},
        "quantization": paper.QUANTIZATION,
        "methods": ["fp32", "uniform", {"allocation": "myqasr", "tuned_on": ["own", "other"]}],
        "study": True,
    }
    return Scenario.model_validate(data | more)


def write_run(
    path,
    models,
    *,
    failures=(),
    events=(),
    timed=None,
    ended=True,
    sensed=True,
    settings=None,
    quantiles=(),
):
    """Write a run folder with these models; `ended` is whether the run ended, `timed` its round on
    the virtual clock, `settings` its scenario."""
    settings = settings or scenario()
    folder = create_run(path, settings)
    folder.layers.write_text(
        json.dumps([{"name": name, "kind": "linear", "weights": 100} for name in LAYERS])
    )
    of_client = {}
    for row, plan in models:
        of_client.setdefault(row.client, []).append((row, plan))
    with Ledger(folder.ledger) as ledger:
        for i, (client, own) in enumerate(sorted(of_client.items())):
            sent = Release(client, "sense", "up", "sensitivity", 8 * len(LAYERS))
            ledger.finish_client(
                client,
                [row for row, _ in own],
                [plan for _, plan in own],
                Sensed(client, (0.5 + i, 2.0, 0.125, 1.0), quantiles) if sensed else None,
                Log([sent]),
            )
        for failure in failures:
            ledger.fail_client(*failure)
        ledger.write(Log(events=list(events)))
        rows = ledger.rows()
    if timed is not None:
        write_round(folder.timeline, timed)
    if ended:
        write_results(folder, rows, settings)
        timing = {"began": "2026-01-02T03:04:05+00:00", "seconds": 61.5}
        folder.timing.write_text(json.dumps(timing))
    return path


def write_matrix(path, key, cells, settings=None):
    """Write a matrix run; `cells` are pairs of a value of the setting `key` and models."""
    settings = settings or scenario(matrix={key: [value for value, _ in cells]})
    folder = create_run(path, settings)
    index = []
    plain = settings.model_copy(update={"matrix": {}})
    for number, (value, models) in enumerate(cells, start=1):
        name = f"cells/{number:03d}"
        write_run(folder.path / name, models, settings=plain)
        index.append({"folder": name, "settings": {key: value}})
    (folder.path / "matrix.json").write_text(json.dumps(index))
    return path


WORDS = [10, 10, 10, 10]


def words_study(budget=40.0, mb=39.5, worse=0):
    """Two speakers, word errors; myqasr is better than uniform on every clip."""
    return [
        model("ann", "fp32", "", [1, 0, 1, 0], WORDS, budget),
        model("ann", "uniform/cosine", "ann", [6 + worse] * 4, WORDS, budget, mb - 1),
        model("ann", "myqasr/cosine", "ann", [2 + worse] * 4, WORDS, budget, mb),
        model("ann", "myqasr/cosine", "bob", [2 + worse, 3, 2, 2 + worse], WORDS, budget, mb),
        model("bob", "fp32", "", [0, 1, 0, 0], WORDS, budget),
        model("bob", "uniform/cosine", "bob", [6 + worse] * 4, WORDS, budget, mb - 1),
        model("bob", "myqasr/cosine", "bob", [2 + worse] * 4, WORDS, budget, mb),
        model("bob", "myqasr/cosine", "ann", [2 + worse, 1, 2, 2 + worse], WORDS, budget, mb),
    ]


def clips_study():
    """Three speakers, counted in clips; each tests its own model, those of the others, and one that
    was tuned on nobody's clips."""
    wrong = {
        "a": {"a": [0, 0, 0, 1], "b": [0, 1, 0, 1], "c": [1, 1, 0, 1], "": [1, 1, 1, 1]},
        "b": {"a": [1, 0, 0, 0], "b": [0, 0, 0, 0], "c": [0, 0, 0, 1], "": [1, 1, 0, 1]},
        "c": {"a": [0, 0, 0, 0], "b": [1, 0, 0, 0], "c": [1, 0, 0, 0], "": [0, 1, 1, 1]},
    }
    return [
        model(client, "uniform/none" if not source else "myqasr/cosine", source, counts)
        for client, sources in wrong.items()
        for source, counts in sources.items()
    ]
