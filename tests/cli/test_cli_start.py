"""The command line as a whole: help, version, usage, and what it takes to start."""

from __future__ import annotations

import pytest

import fedsim
from fedsim.cli import main

HEAVY = ("torch", "ray", "flwr", "transformers", "datasets", "numpy", "pydantic", "rich", "yaml")
LOADED = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "frob",
        "run small.yaml --workers 0",
        "run small.yaml --threads x",
        "run small.yaml --workers -1",
        "run small.yaml --frob",
        "run small.yaml --resume here",
        "validate small.yaml --set",
        "voices --speakers 0",
        "voices --clips -1",
        "voices --first one",
        "voices --languages",
        "voices en",
        "voices --export",
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "usage: fedsim" in capsys.readouterr().err


def test_fedsim_alone_prints_help(capsys):
    assert main([]) == 0
    assert "fedsim validate prompts_languages" in capsys.readouterr().out


def test_help_and_version(capsys):
    for verb in ("run", "estimate", "report", "audit", "validate", "list", "voices", None):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"] if verb else ["--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: fedsim {verb or '[-h]'}")
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"fedsim {fedsim.__version__}"


@pytest.mark.parametrize(
    "code",
    [
        "import fedsim",
        "import fedsim.cli",
        "from fedsim.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from fedsim.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(python, code):
    child = python("-c", f"{code}\n{LOADED}")
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    loaded = out.splitlines()[-1].split()
    assert "fedsim" in loaded
    assert set(loaded).isdisjoint(HEAVY)


def test_a_reader_that_closes_the_pipe_is_not_an_error(python):
    child = python("-m", "fedsim", "validate", "--schema")
    child.stdout.close()  # before the first word, as `| true` does
    assert (child.stderr.read(), child.wait(timeout=60)) == ("", 0)
