"""Damaged scenarios, read as `fedsim validate` reads them."""

from __future__ import annotations

import contextlib
import io
import random
import re
from functools import cache
from pathlib import Path

from benchmarks.fuzz import Finding
from benchmarks.fuzz.reading import bad_words, damaged, watched
from fedsim.cli import main
from fedsim.errors import MAX_LINE, MAX_LINES
from fedsim.scenario import load_scenario
from fedsim.scenario.load import describe_scenario

_FOLDER = Path(__file__).parents[2] / "scenarios"
_NUMBERS = (
    *("0", "-1", "1", "2", "-0.0", "1e308", "1e309", "-1e308", "1e-320", ".inf", "-.inf", ".nan"),
    *("10000000000000000000", "9223372036854775807", "9223372036854775808", "1" * 400, "9" * 5000),
    *("0.1", "1.0000000000000002", "0x1F", "1_000", "900000", "1000000", "100000", "255", "256"),
    *("+5", "007", "1e3", "²", "٣", "１２"),
)
_TOKENS = (
    *("null", "~", "true", "no", "[]", "{}", "''", '""', "[[]]", "{a: b}", "- x", "? x", "!!int x"),
    *(
        '"\\0"',
        '"\\uD800"',
        '"\\e[2J"',
        '"\\x85"',
        '"e\\u0301"',
        '"é"',
        "!!python/object:os.system",
    ),
    *("&a [*a]", "*a", "<<: *a", "|", ">-", "%YAML 1.2", "---", "...", "\t", "\ufeff", "\u2028"),
    *(
        "own",
        "other",
        "each",
        "-",
        "..",
        "../..",
        "/dev/zero",
        "/",
        "~root",
        "$HOME",
        "cache:..",
        ".",
    ),
    *("x" * 300, "é" * 200, "a/" * 3000, "'" + "y" * 5000 + "'", "🙂" * 70, "\u202eabc"),
)
_MAX_SHOWN = (MAX_LINES + 1) * (MAX_LINE + 20)


@cache
def _texts() -> tuple[str, ...]:
    found = (path.read_text(encoding="utf-8") for path in sorted(_FOLDER.rglob("*.yaml")))
    return tuple(found)


def try_one(rng: random.Random, home: Path) -> Finding | None:
    """Damage one of fedsim's own scenarios, and validate it."""
    text = rng.choice(_texts())
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        text = rng.choice(_DAMAGE)(rng, text)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        content = damaged(rng, content)
    path = home / "scenario.yaml"
    path.write_bytes(content)
    overrides = [_override(rng)] if rng.random() < 0.2 else []
    note = "".join(f"# --set {override}\n" for override in overrides).encode("utf-8", "replace")
    deep = rng.random() < 0.3
    return watched(note + content, lambda: _validate(path, overrides, deep=deep))


def _validate(path: Path, overrides: list[str], *, deep: bool) -> str | None:
    """Read a scenario; with `deep` also write and read it again, and list its clients."""
    summary = "" if deep else describe_scenario(path)
    if len(summary) > MAX_LINE or not (summary.isprintable() or "\t" in summary):
        return f"a summary that does not fit into a list: {summary[:500]!r}"
    if not deep and not overrides and path.stat().st_size > 100_000:
        return None  # to read a large one twice takes as long as an answer may
    scenario = load_scenario(path, overrides)
    if not deep:
        return None
    again = scenario.to_yaml()
    path.with_name("again.yaml").write_text(again, encoding="utf-8")
    if load_scenario(path.with_name("again.yaml")).to_yaml() != again:
        return "what is written of it reads differently"
    if scenario.corpus.kind != "voices":
        return None  # its recordings are not here
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(["validate", str(path), *(["--set", *overrides] if overrides else [])])
    shown = err.getvalue()
    if len(shown) > _MAX_SHOWN or shown.count("\n") > MAX_LINES + 1:
        return f"an error longer than a screen: {shown[:500]}"
    return bad_words(shown) if shown else None


def _override(rng: random.Random) -> str:
    text = rng.choice(_texts())
    keys = [key.strip(" -") for key in re.findall(r"^[ \w-]+(?=:)", text, re.M)] or ["name"]
    parts = [rng.choice((*keys, "0", "1", "²", "99", "9" * 30, "-1")) for _ in range(3)]
    return f"{'.'.join(parts[: rng.randint(1, 3)])}={rng.choice((*_NUMBERS, *_TOKENS))}"


def _number(rng: random.Random, text: str) -> str:
    found = list(re.finditer(r"\d+(?:\.\d+)?", text))
    return _at(text, rng.choice(found), rng.choice(_NUMBERS)) if found else text


def _token(rng: random.Random, text: str) -> str:
    found = list(re.finditer(r"[\w./+-]+", text))
    return _at(text, rng.choice(found), rng.choice((*_TOKENS, *_NUMBERS))) if found else text


def _at(text: str, match: re.Match[str], word: str) -> str:
    return text[: match.start()] + word + text[match.end() :]


def _swap(rng: random.Random, text: str) -> str:
    """Put one word in place of another, of this or another scenario."""
    words = re.findall(r"[\w./+-]+", rng.choice((text, *_texts())))
    found = list(re.finditer(r"[\w./+-]+", text))
    return _at(text, rng.choice(found), rng.choice(words)) if found and words else text


def _lines(rng: random.Random, text: str) -> str:
    """Remove, repeat, indent or move some lines."""
    lines = text.splitlines(keepends=True) or ["\n"]
    at = rng.randrange(len(lines))
    some = lines[at : at + rng.choice((1, 1, 2, 5))]
    match rng.randrange(4):
        case 0:
            del lines[at : at + len(some)]
        case 1:
            lines[at:at] = some * rng.choice((1, 1, 200))
        case 2:
            lines[at : at + len(some)] = [rng.choice(("  ", " ", "\t", "- ")) + x for x in some]
        case 3:
            lines[at : at + len(some)] = []
            lines[rng.randrange(len(lines) + 1) :][:0] = some
    return "".join(lines)


def _nested(rng: random.Random, text: str) -> str:
    depth = rng.choice((2, 30, 49, 51, 200, 3000))
    left, right = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", "")))
    return _value(rng, text, left * depth + "1" + right * depth)


def _many(rng: random.Random, text: str) -> str:
    count = rng.choice((100, 1_000, 30_000, 200_000))
    item = rng.choice(("x", "1", "fp32", "{}", "c{i}", "1e9", "[1]"))
    items = ", ".join(item.replace("{i}", str(i)) for i in range(count))
    if item == "c{i}" and rng.random() < 0.5:
        return _value(rng, text, "{" + items.replace(",", ": 1,") + ": 1}")
    return _value(rng, text, f"[{items}]")


def _aliases(rng: random.Random, text: str) -> str:
    width, depth = rng.choice(((2, 30), (9, 9), (1, 1500), (3, 10), (200, 3)))
    lines = ["x0: &x0 [1, 2]\n"]
    below = (", ".join([f"*x{i - 1}"] * width) for i in range(1, depth))
    lines += [f"x{i}: &x{i} [{items}]\n" for i, items in enumerate(below, start=1)]
    block = "".join(lines)
    return block + _value(rng, text, f"*x{depth - 1}") if rng.random() < 0.5 else text + block


def _value(rng: random.Random, text: str, value: str) -> str:
    """Put a value at the end of a line with a key."""
    found = list(re.finditer(r"(?<=:) [^\n]*$", text, re.M))
    return _at(text, rng.choice(found), " " + value) if found else text


_DAMAGE = (
    *(_number, _token, _swap, _lines) * 4,
    _number,
    _number,
    _number,
    _token,
    _token,
    _swap,
    _swap,
    _lines,
    _nested,
    _many,
    _aliases,
)
