"""`fedsim audit` on a run of a matrix, and on a scenario that was not run."""

import json
from dataclasses import replace

import paper
import pytest
import toys
from entries import added

from fedsim.audit.record import read_audit
from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.privacy.noise import MECHANISMS

RELEASES = [
    {"release": "noisy", "epsilon": 5.0, "delta": 1e-3, "public_voices": 2},
    {"release": "none", "public_voices": 2},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory, model_folder):
    return toys.write_scenario(
        tmp_path_factory.mktemp("audit") / "s.yaml",
        model={"id": str(model_folder("ctc-group")), "batch_size": 4},
        corpus={
            "kind": "voices",
            "group_by": "speaker",
            "population": {"speakers": 20, "topics": "words"},
            "tuning_clips": 2,
            "test_clips": 1,
        },
        clients={"budget_mb": 0.032},
        quantization=paper.QUANTIZATION,
        methods=["fp32", {"allocation": "myqasr", "calibration": ["minmax"]}],
        study=True,
        matrix={"privacy": RELEASES},
    )


@pytest.fixture(scope="module")
def folder(file):
    out = file.parent / "run"
    assert main(["run", str(file), "--out", str(out)]) == 0
    return out


def by_figure(audited):
    return {(f.attribute, f.figure): f for f in audited.findings}


@pytest.mark.slow
def test_a_run_is_audited_member_by_member(folder, capsys):
    assert main(["audit", str(folder), "--targets", "1"]) == 0
    printed = capsys.readouterr().out
    (noisy,), (none,) = (read_audit(folder / f"cells/00{i}/audit.json") for i in (1, 2))
    assert [a.release for a in (noisy, none)] == [r["release"] for r in RELEASES]
    for audited in (noisy, none):
        names = set(by_figure(audited))
        assert {("gender", "AUC"), ("the speaker", "rank-1"), ("a tuning clip", "AUC")} <= names
        assert [r["line"] for r in audited.rates] == ["full precision", "myqasr/minmax, own clips"]
    # Nothing was released, so nothing is given away: exactly chance.
    assert {f.verdict for f in none.findings} <= {"not distinguishable", "not measured"}
    assert by_figure(none)["the speaker", "AUC"].value == 0.5
    assert noisy.claim is not None
    assert not noisy.claim.is_refuted
    assert none.claim is None
    assert "nothing against the claim of ε = 5" in printed
    assert "release none" in printed
    assert "10 of each are needed, of two clients at least" in printed


SMALL = ["matrix={}", "corpus.population.speakers=4", "privacy={public_voices: 2}"]


def test_too_little_noise_fails_loudly(file, tmp_path, capsys):
    """A mechanism that adds 0.4 times the noise that its accountant asks for."""
    sound = MECHANISMS["gaussian"]
    weak = replace(sound, seeded=lambda rng, scale, n: sound.seeded(rng, 0.4 * scale, n))
    noisy = ["privacy.release=noisy", "privacy.epsilon=5", "privacy.mechanism=weak"]
    subject = [str(file), "--out", str(tmp_path / "a.json"), "--targets", "1"]
    with added(MECHANISMS, "weak", weak):
        assert main(["audit", *subject, "--set", *SMALL, *noisy]) == 1
    printed = capsys.readouterr()
    assert "error: LESS NOISE THAN CLAIMED: 2,000 releases of each" in printed.err
    assert "the claim of ε = 5 is refuted" in printed.err


def test_a_scenario_is_audited_without_a_run(file, tmp_path, capsys):
    out = tmp_path / "a.json"
    cohort = ["privacy.release=cohort", "privacy.cohort.size=4"]
    subject = [str(file), "--set", *SMALL, *cohort, "--out", str(out), "--targets", "2"]
    assert main(["audit", *subject]) == 0
    (audited,) = read_audit(out)
    assert audited.rates == ()
    assert by_figure(audited)["a tuning clip", "AUC"].value is not None
    assert json.loads(out.read_text())["version"] == 1
    assert str(out) in capsys.readouterr().out


def test_what_cannot_be_audited(folder, tmp_path, capsys):
    assert main(["audit", str(folder), "--set", "seed=2"]) == 1
    assert "a run is audited as it was" in capsys.readouterr().err
    assert main(["audit", "no such thing"]) == 1
    assert "there is no scenario 'no such thing'" in capsys.readouterr().err
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(FedsimError, match="run fedsim audit again"):
        read_audit(tmp_path / "audit.json")
    assert read_audit(tmp_path / "none.json") == []


def test_tables_of_losses_are_not_attacked(file, tmp_path, capsys):
    own = "methods=[{allocation: knapsack, losses: own}]"
    words = [
        "audit",
        str(file),
        "--set",
        *SMALL,
        "matrix={}",
        own,
        "--out",
        str(tmp_path / "a.json"),
    ]
    assert main(words) == 1
    assert "losses: own makes devices send tables" in capsys.readouterr().err
