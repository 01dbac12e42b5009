"""The code in README.md and docs/: each block runs here, or says where it runs, or why it does not.

A block is preceded by a comment `<!-- runs in tests/... -->` or `<!-- not run: the reason -->`, or
it runs here: Python as it stands, page by page, with a few clips; commands are parsed, and the
scenarios that they name are found.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import fedsim
from fedsim.cli import make_parser
from fedsim.protocol.rules import RULES
from fedsim.results.ledger_schema import TABLES
from fedsim.scenario import find_scenario, json_schema, load_scenario

REPOSITORY = Path(__file__).parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(REPOSITORY / name for name in TOP), *sorted(REPOSITORY.glob("docs/**/*.md"))]
LANGUAGES = ("python", "sh", "bash")
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block of code in a page."""

    page: str
    language: str
    code: str
    mark: str


def blocks() -> list[Block]:
    return [
        Block(str(page.relative_to(REPOSITORY)), m["language"], m["code"], m["mark"] or "")
        for page in PAGES
        for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))
        if m["language"] in LANGUAGES
    ]


def test_every_mark_is_known_and_every_test_that_it_names_is_there():
    marked = [block for block in blocks() if block.mark]
    assert len(marked) > 5
    for block in marked:
        kind, _, rest = block.mark.partition("runs in ")
        if kind:
            assert block.mark.startswith("not run: "), block
            assert len(block.mark) > 20, block
        else:
            assert block.page in (REPOSITORY / rest).read_text(encoding="utf-8"), block


def commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [found for found in words if found]


SHELL = [block for block in blocks() if block.language != "python" and not block.mark]


@pytest.mark.parametrize("block", SHELL, ids=lambda b: f"{b.page}: {b.code.splitlines()[0]}")
def test_commands(block, monkeypatch, capsys):
    """Each is one of fedsim, with options that it has, and scenarios exist and take the overrides;
    or a module of the repository, which is there."""
    monkeypatch.chdir(REPOSITORY)
    for words in commands(block.code):
        if words[:2] == ["python", "-m"]:
            place = REPOSITORY / words[2].replace(".", "/")
            assert place.with_suffix(".py").is_file() or place.is_dir(), block
            continue
        assert words[0] == "fedsim", block
        options = make_parser().parse_args(words[1:])
        named = getattr(options, "scenario", None)
        if named is not None:
            load_scenario(find_scenario(named), options.set)


PYTHON = sorted({block.page for block in blocks() if block.language == "python" and not block.mark})


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON)
def test_python(page, tmp_path, monkeypatch):
    """The blocks of a page, one after another, with what they take for granted."""
    from fedsim.scenario.corpus import CorpusSettings, PopulationSettings
    from fedsim.speech.clips import read_utterance
    from fedsim.speech.voices.population import open_population

    settings = CorpusSettings(
        kind="voices",
        population=PopulationSettings(speakers=1),
        group_by="speaker",
        tuning_clips=8,
        test_clips=1,
    )
    (client,) = open_population(settings, 0).values()
    names = {"fedsim": fedsim, "personalize": fedsim.personalize}
    names["clips"] = [read_utterance(clip) for clip in client.tuning]
    monkeypatch.chdir(tmp_path)
    for block in blocks():
        if (block.page, block.language, block.mark) == (page, "python", ""):
            exec(compile(block.code, page, "exec"), names)


def test_the_reference_has_every_key_command_message_and_table():
    place = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(place)
    place.loader.exec_module(hooks)
    page = hooks.scenario_page()
    for section in json_schema()["$defs"].values():
        for key in section.get("properties", ()):
            assert re.search(rf"^\| `(.+\.)?{key}` \|", page, re.MULTILINE), key
    assert "| `seed` | whole number ≥ 0" in page
    commands = hooks.commands_page()
    messages, ledger = hooks.messages_page(), hooks.ledger_page()
    for name in ("run", "size", "report", "voices"):
        assert f"## fedsim {name}\n" in commands
    assert "--no-report" in commands
    for kind, rules in RULES.items():
        (section,) = re.findall(rf"## {kind.__name__}\n(.*?)(?=\n## |$)", messages, re.DOTALL)
        for field in fields(kind):
            assert f"| `{field.name}` |" in section
        assert section.count("\n- `") == len(rules)
    for table in TABLES.values():
        assert f"## {table.name}\n" in ledger
        assert all(f"| `{column.name}` |" in ledger for column in table.columns)
