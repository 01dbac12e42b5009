"""What is known of clips, what is released and what devices cost, language by language."""

from __future__ import annotations

import shutil

import mms_toys
import pyarrow.parquet as pq
import pytest
import toys

from fedsim import load_model
from fedsim.audit.run import audit_run
from fedsim.errors import FedsimError
from fedsim.fleet.timeline import from_arrow
from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return mms_toys.save_study(tmp_path_factory.mktemp("by-language"))


@pytest.fixture(scope="module")
def write(home):
    return mms_toys.writer(home)


def public(home, language):
    """Public clips of one language, of all for `all`."""
    path = home / "public" / language
    if not path.exists():
        spoken = list(mms_toys.NAMES) if language == "all" else [language]
        names = [f"{code}-{i}" for code in spoken for i in range(2)]
        codes = [name.split("-")[0] for name in names]
        toys.write_corpus(path, names, each=3, languages=codes)
        for name in names if language != "all" else ():  # the very clips that are among all
            for i in range(3):
                shutil.copy(home / "public/all" / name / f"{i}.wav", path / name / f"{i}.wav")
    corpus = {"group_by": "speaker", "path": str(path), "tuning_clips": 2, "test_clips": 1}
    return {"public_clips": corpus, "public_count": 8}


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["public", "own", "blend"])
def test_second_moments_are_those_of_the_language(write, home, tmp_path, moments):
    rounding = {"rounding": "compensated", "moments": moments}
    methods = [{"allocation": "myqasr", "calibration": "minmax"}]
    sections = {"methods": methods, "quantization": rounding | public(home, "all")}
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []

    def fixed(language):
        return {"quantization": rounding | public(home, language)}

    mms_toys.check(result, mms_toys.alone(write, tmp_path, fixed, **sections))


@pytest.mark.slow
@pytest.mark.parametrize("losses", ["public", "own"])
def test_losses_are_those_of_the_language(write, home, tmp_path, losses):
    methods = [{"allocation": "knapsack", "losses": losses, "calibration": "minmax"}]
    sections = {"methods": methods, "quantization": public(home, "all")}
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []

    def fixed(language):
        return {"quantization": public(home, language)}

    mms_toys.check(result, mms_toys.alone(write, tmp_path, fixed, **sections))


def test_a_device_plans_for_its_language(write, tmp_path):
    sections = {
        "methods": [{"allocation": "myqasr", "calibration": "minmax"}],
        "privacy": {"release": "plan"},
        "study": False,
    }
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []
    sizes = {row.client: row.file_bytes for row in result.rows}
    assert all(row.file_bytes <= row.budget_bytes for row in result.rows)
    assert sizes.keys() == mms_toys.SPEAKS.keys()


def test_plans_of_other_clients_are_tried_in_ones_own_language(write, tmp_path):
    """Their depths, the tester's weights; what cannot be moved between languages is refused."""
    tuned = {"allocation": "myqasr", "tuned_on": ["own", "each"]}
    scenario = write(methods=[tuned | {"calibration": ["float", "dynamic"]}])
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    assert {(row.client, row.tuned_on) for row in result.rows} == {
        (a, b) for a in mms_toys.SPEAKS for b in mms_toys.SPEAKS
    }
    # Whoever tests, a file of its language: as large as its head.
    alone = {row.client: row for row in result.rows if row.client == row.tuned_on}
    same = [r for r in result.rows if r.plan_sha256 == alone[r.client].plan_sha256]
    assert all(row.file_bytes == alone[row.client].file_bytes for row in same)
    for cell in (
        {"calibration": "minmax"},
        {"calibration": "none"},
        {"calibration": "float", "rounding": "compensated", "moments": "own"},
    ):
        scenario = write(methods=[tuned | cell])
        with pytest.raises(FedsimError, match=r"only bit depths fit .*; use tuned_on: own, or cal"):
            run_scenario(scenario, tmp_path / str(cell))


@pytest.mark.slow
def test_devices_of_a_fleet_fetch_the_model_of_their_language(write, home, tmp_path):
    """On the virtual clock a device fetches its full model, its messages and its very file."""
    toy = {"share": 1, "budget_mb": 0.05, "bit_depths": [2, 4, 8], "memory_mb": 5}
    chosen = write(
        fleet={"devices": {"mid_phone": toy}, "clip_s": 0.5},
        clients={},
        methods=[{"allocation": "myqasr", "calibration": "cosine", "rounding": "nearest"}],
    )
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    size = {row.client: row.file_bytes for row in result.rows}
    full = {}
    for client, spoken in mms_toys.SPEAKS.items():
        module = load_model(home / "mms", target_lang=mms_toys.NAMES[spoken]).module
        full[client] = sum(4 * tensor.numel() for tensor in module.state_dict().values())
    with Ledger(result.folder.ledger) as ledger:
        sent = ledger.message_bytes()
    lines = from_arrow(pq.read_table(result.folder.timeline))
    assert {line.client for line in lines} == set(size)
    for line in lines:
        messages = sum(n for (_, way), n in sent[line.client].items() if way == "down")
        assert line.down_bytes == messages + full[line.client] + size[line.client]
    assert len(set(full.values())) == 2  # Greek has fewer letters


@pytest.mark.slow
@pytest.mark.parametrize(
    "privacy", [{"release": "quantized", "bits": 4}, {"release": "cohort", "cohort": {"size": 4}}]
)
def test_bounds_are_common_to_all_languages(write, tmp_path, privacy):
    """One release of the profile, whichever language's model it is of; an audit senses alike."""
    scenario = write(
        methods=[{"allocation": "myqasr", "calibration": "minmax"}],
        privacy=privacy | {"public_voices": 4},
        study=False,
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    assert {row.client for row in result.rows} == set(mms_toys.SPEAKS)
    assert list(audit_run(tmp_path / "run", 2))
