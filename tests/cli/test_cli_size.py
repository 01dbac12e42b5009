"""`fedsim size`: one line per budget and set of bit depths, with bytes, error and times."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from fedsim.cli import main
from fedsim.fleet.devices import load_catalogue
from fedsim.results.folder import RunFolder, read_results
from fedsim.results.rates import Rate
from fedsim.results.reading import read_index
from fedsim.runner.sizing import Option, Sizing
from fedsim.speech.macs import count_macs
from fedsim.speech.models import load_model

PLAIN = ("quantization.rounding=nearest", "methods=[fp32, uniform]")


@pytest.fixture
def sized(folder, model_folder, capsys):
    """Return a function that sizes a toy on clips of two speakers and returns what is printed."""
    toys.write_corpus(folder / "speech", speakers=("ann", "bob"), each=6)

    def size(*words):
        model = str(model_folder("ctc-group"))
        given = ("--clips", "speech", "--out", "run", "--engine", "inprocess", "--set", *PLAIN)
        assert main(["size", model, *words, *given]) == 0
        return capsys.readouterr().out

    return size


def test_the_page(sized, model_folder):
    page = sized("--budgets", "0.0334,0.01", "--bit-depths", "4-6", "8", "--max-error", "1000")
    cells = {tuple(c["clients.bit_depths"]): name for name, c in read_index(Path("run/matrix.json"))
             if c["clients.budget_mb"] == 0.0334}  # fmt: skip
    rows = read_results(RunFolder(Path("run") / cells[4, 5, 6]).results)
    row = next(row for row in rows if row.method != "fp32")
    line = next(line for line in page.splitlines() if line.startswith("0.0334 MB, 4-6 bits"))
    assert line.split()[4:6] == [f"{row.file_bytes:,}", f"{row.mean_bits:.2f}"]
    assert "is below the smallest feasible model file" in page
    assert "client 'ann'" not in page
    assert page.count("0.01 MB, 8 bits") >= 3
    model = load_model(model_folder("ctc-group"))
    macs = count_macs(model).of(1, 10.0, 0.0).sum()
    assert f"{macs / 1e9:.2f} G multiply-accumulates for 10 s of audio\n" in page
    lines = [line for line in page.splitlines() if line.startswith("0.0334 MB, 4-6 bits")]
    # Of a table that is too wide there are two.
    times = [
        cell for line in lines[1:] if " MB, 4-6 bits." not in line for cell in line.split()[4:]
    ]
    (depth,) = {round(row.mean_bits)}
    assert times == [
        f"{macs / device.profile.macs_per_s[depth]:.2g}"
        if depth in device.profile.bit_depths
        else "-"
        for device in load_catalogue().values()
    ]
    assert "on these clips: 0.0334 MB, 4-6 bits." in page
    assert page.splitlines()[-1] == f"report: {Path('run').absolute()}/report.html"


def test_the_smallest_option_that_holds_an_error():
    def option(n_bytes, *rate, kind="WER"):
        return Option(1.0, (4, 8), "", n_bytes, 4.0, {4: 2}, Rate(kind, *rate))

    none = Option(0.1, (4, 8), "too small")
    options = (
        none,
        option(30, 9.0, 8.0, 9.5),
        option(20, 10.0, 8.0, 13.0),
        option(10, 14.0, 9, 20),
    )
    sizing = Sizing("m", 1, 1, None, 10.0, 1.0, False, options)
    assert sizing.smallest(10.0) == (options[2], options[1])
    assert sizing.smallest(8.5) == (None, None)
    assert sizing.smallest(50.0) == (options[3], options[3])
    right = (option(5, 95.0, 85.0, 99.0, kind="accuracy"),)
    sizing = Sizing("m", 1, 1, None, 10.0, 1.0, False, right)
    assert sizing.smallest(10.0) == (right[0], None)


@pytest.mark.parametrize(
    "words",
    [
        "--budgets 0",
        "--budgets 20,x",
        "--budgets nan",
        "--budgets 20 --bit-depths 1,4",
        "--budgets 20 --bit-depths 4-",
        "--budgets 20 --bit-depths 8-4",
        "--budgets 20 --max-error -1",
        "--bit-depths 4",
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["size", "bundled:ctc", *words.split()])
    assert "usage: fedsim size" in capsys.readouterr().err


def test_recordings_that_are_not_there(capsys):
    assert main(["size", "bundled:ctc", "--budgets", "1", "--clips", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
