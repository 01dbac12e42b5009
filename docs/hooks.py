"""What `mkdocs build` writes by itself: reference pages, each from the code that it describes."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "scenario": scenario_page,
        "commands": commands_page,
        "messages": messages_page,
        "ledger": ledger_page,
    }
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write a link to a file outside the site as that file's path in the repository."""
    home = Path(config.docs_dir)
    here = (home / page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / match[2].partition("#")[0]))
        if target.is_relative_to(home) or not target.exists():
            return match[0]
        return f"{match[1]} (`{target.relative_to(home.parent)}`)"

    return _LINK.sub(link, markdown)


def scenario_page() -> str:
    """Return the reference of a scenario's keys, a table for each section of the schema."""
    from fedsim.scenario import json_schema

    schema = json_schema()
    lines = [
        "# YAML keys",
        "",
        "Every key of a scenario, from the schema that checks it. `fedsim validate --schema` prints"
        " the schema for an editor, and `fedsim list` every name that a key takes.",
    ]
    sections = [("scenario", "", schema)]
    seen: set[str] = set()
    while sections:
        title, path, section = sections.pop(0)
        lines += ["", f"## {title}", "", *_paragraph(section), *_table(section, path)]
        for key, value in section["properties"].items():
            for name in _references(value):
                found = schema["$defs"][name]
                if "properties" in found and name not in seen:
                    seen.add(name)
                    again = any(title == path + key for title, _, _ in sections)
                    title = f"{path}{key}: {_plain(name)}" if again else path + key
                    sections.append((title, f"{path}{key}.", found))
    return "\n".join([*lines, ""])


def _paragraph(section: dict[str, Any]) -> list[str]:
    text = " ".join(section.get("description", "").split())
    return [_cell(text), ""] if text else []


def _table(section: dict[str, Any], path: str) -> Iterator[str]:
    required = section.get("required", ())
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for key, value in section["properties"].items():
        default = "required" if key in required else f"`{_default(value.get('default'))}`"
        description = _cell(value.get("description", ""))
        yield f"| `{path}{key}` | {_cell(_kind(value))} | {_cell(default)} | {description} |"


def _kind(value: dict[str, Any]) -> str:
    """Return the type of a key in words, with its bounds."""
    if "$ref" in value:
        return _plain(value["$ref"].rsplit("/", 1)[1])
    for word in ("anyOf", "oneOf", "allOf"):
        if word in value:
            return " or ".join(dict.fromkeys(_kind(one) for one in value[word]))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {_kind(value['items'])}" if value.get("items") else "list"
    if kind == "object":
        return "mapping"
    names = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    bounds = (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    )
    limits = [f"{sign} {value[key]:,}" for key, sign in bounds if key in value]
    return " ".join([names.get(kind, kind), *limits])


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{...}"
    return json.dumps(value, ensure_ascii=False)


def _plain(name: str) -> str:
    """Return `FaultSettings` as `fault settings`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip("_")).lower()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def commands_page() -> str:
    """Return the help of each command."""
    from fedsim.cli import command_helps

    os.environ["COLUMNS"] = "100"
    lines = ["# Commands"]
    for name, text in command_helps().items():
        lines += ["", f"## {name}", "", "```text", text.strip(), "```"]
    return "\n".join([*lines, ""])


def messages_page() -> str:
    """Return the messages: their fields, and what the server checks of an answer's."""
    import fedsim.protocol.messages as own
    from fedsim.privacy.secure_aggregation import wire
    from fedsim.protocol.rules import RULES

    lines = [
        "# Messages",
        "",
        f"Version {own.PROTOCOL} of what clients and server send each other. Every field of every"
        " message is here: no field could carry audio, text or activations. What an answer may hold"
        " is checked by the server before anything else reads it; a client that breaks a rule is"
        " quarantined by its name.",
    ]
    for module in (own, wire):
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                lines += ["", f"## {kind.__name__}", "", inspect.getdoc(kind) or "", ""]
                lines += ["| field | type |", "|---|---|"]
                lines += [f"| `{f.name}` | {_cell(str(f.type))} |" for f in fields(kind)]
                rules = RULES.get(kind, ())
                if rules:
                    lines += ["", "What is checked:", ""]
                lines += [
                    f"- {', '.join(f'`{name}`' for name in dict.fromkeys(rule.fields))}:"
                    f" {' '.join((inspect.getdoc(rule.check) or '').split())}"
                    for rule in rules
                ]
    return "\n".join([*lines, ""])


def ledger_page() -> str:
    """Return the tables of a run's ledger."""
    from fedsim.results.ledger_schema import TABLES, VERSION

    lines = [
        "# The ledger",
        "",
        f"`ledger.sqlite` in a run folder, version {VERSION}: an SQLite database that any SQLite"
        " reader opens. Numbers in blobs are little-endian; each row ends with a checksum of its"
        " values.",
    ]
    for table in TABLES.values():
        key = ", ".join(f"`{name}`" for name in table.key) or "the number of the row"
        lines += ["", f"## {table.name}", "", f"{table.what} Key: {key}.", ""]
        lines += ["| column | type | |", "|---|---|---|"]
        for column, kind in zip(table.columns, table.sql_kinds, strict=True):
            null = ", may be null" if column.optional else ""
            lines.append(f"| `{column.name}` | {kind}{null} | {_cell(column.what)} |")
    return "\n".join([*lines, ""])
