"""The HTML report: one file with its data, its figures and the scripts that draw them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedsim.base.files import write_text
from fedsim.base.units import MB, time_words
from fedsim.errors import FedsimError
from fedsim.report import htmltables
from fedsim.report.clienttables import fairness_sentences, fairness_table
from fedsim.report.devicetables import devices_table, endings_sentences, spreads_table
from fedsim.report.failures import failures_section
from fedsim.report.figure_selection import Figure, figures_of, fleet_figures
from fedsim.report.findings import Claim, Compared, answers, claim, comparisons, headline
from fedsim.report.fleet import CLOCK, fleet_section
from fedsim.report.glossary import words_in, words_of
from fedsim.report.leaks import leaks_table
from fedsim.report.style import save
from fedsim.results.lines import normalizers_of, size_digits, span, texts_phrase
from fedsim.results.rare import rare_phrase
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part, Run, read_runs
from fedsim.study.privacy_statement import read_statement

_HERE = Path(__file__).parent
_MANY_COMPARISONS = 10  # from this number on, a note explains chance
_OPEN_ROWS = 12  # longer tables are folded; one of this length fits on a screen


@dataclass(frozen=True)
class Report:
    """The files that were written: the report, and its figures if a folder was given for them."""

    path: Path
    figures: tuple[Path, ...]
    gaps: tuple[str, ...]
    """What is missing from the runs; empty if every client finished."""


def write_report(
    paths: Sequence[Path],
    out: Path | None = None,
    figures: Path | None = None,
    max_rows: int = htmltables.MAX_ROWS,
) -> Report:
    """Write the report of one or more run folders.

    Args:
        paths: run folders; several are reported side by side.
        out: the file; None for `report.html` in the run folder, or in the working folder if there
            are several runs.
        figures: a folder for every figure as HTML, SVG and PNG, or None.
        max_rows: rows of the tables that have one or more per client.

    Raises:
        FedsimError: if a folder is not a run folder, no client finished, or a file cannot be
            written.
    """
    runs = read_runs(paths)
    parts = [part for run in runs for part in run.parts]
    found = claim(parts)
    drawn, clocked = figures_of(parts, found.lines if found else ()), fleet_figures(parts)
    file = out or (runs[0].path if len(runs) == 1 else Path()) / "report.html"
    try:
        write_text(file, render(runs, found, drawn, clocked, max_rows))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{file}: the report cannot be written here ({reason}): name another file with --out"
        ) from error
    saved = [
        path
        for figure in (*drawn, *clocked)
        if figures is not None
        for path in save(figure.chart, figures / figure.name)
    ]
    return Report(file, tuple(saved), tuple(gap for _, gap in _gaps(runs)))


@cache
def _scripts() -> Markup:
    """Return the scripts that draw figures; putting them together takes a third of a second."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its stub wrongly requires an argument
    return Markup(bundle())


def render(
    runs: Sequence[Run],
    found: Claim | None,
    figures: Sequence[Figure],
    clocked: Sequence[Figure],
    max_rows: int,
) -> str:
    """Return the report as HTML; the same runs give the same text.

    Args:
        runs: the runs, in order.
        found: the claim that stands first, if anything was counted.
        figures: the figures of all results.
        clocked: the figures of the fleet.
        max_rows: rows of the tables that have one or more per client.
    """
    parts = [part for run in runs for part in run.parts]
    lines = [line for part in parts for line in lines_of(part)]
    compared = comparisons(parts)
    shown = _figure_of(found, figures)
    page = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    return page.render(
        title=" and ".join(dict.fromkeys(run.name for run in runs)),
        descriptions=[(run.name, *_paragraphs(run.scenario.description)) for run in runs],
        gaps=_gaps(runs),
        claim=found.sentence if found else "",
        claim_words=words_in(found.sentence, found.lines or lines) if found else [],
        claim_figure=_embedded(shown) if shown else None,
        facts=_facts(runs, lines),
        headline=[sentence for run in runs for sentence in _headline(run, len(runs) > 1)],
        answers=answers(compared),
        notes=_notes(parts, compared),
        figures=[_embedded(f) for f in figures if f is not shown and not f.of_clients],
        served=fairness_sentences(found.lines if found else ()),
        client_figures=[_embedded(figure) for figure in figures if figure.of_clients],
        fairness=fairness_table(lines),
        rare=rare_phrase(row for line in lines for row in line.rows),
        results=htmltables.results_table(lines),
        texts=texts_phrase(row for line in lines for row in line.rows),
        clients=htmltables.clients_table(lines, max_rows),
        compared=htmltables.comparisons_table(compared),
        endings=endings_sentences(parts),
        spreads=spreads_table(parts),
        devices=devices_table(parts, max_rows),
        fleet=fleet_section(parts),
        fleet_figures=[_embedded(figure) for figure in clocked],
        clock=CLOCK,
        open_rows=_OPEN_ROWS,
        failures=failures_section(parts),
        releases=htmltables.releases_table(parts),
        statements=_statements(parts),
        leaks=leaks_table(parts),
        differences=htmltables.differences_table(runs) if len(runs) > 1 else None,
        words=words_of(lines),
        runs=[(run, _commands(run), _versions(run)) for run in runs],
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
        vega=_scripts(),
    )


def _figure_of(found: Claim | None, figures: Sequence[Figure]) -> Figure | None:
    """Return the figure that shows a claim: the first with a rate for every method."""
    return next((f for f in figures if found and f.rates_of == found.kind), None)


def _statements(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Return the privacy statement of each part, with the part's settings in words."""
    statements = [(part.label, read_statement(part.path / "privacy.json")) for part in parts]
    return [(label, one.sentence) for label, one in statements if one is not None]


def _gaps(runs: Sequence[Run]) -> list[tuple[str, str]]:
    several = len(runs) > 1
    return [(run.name if several else "", gap) for run in runs for gap in run.gaps]


def _paragraphs(description: str) -> tuple[str, str]:
    """Return the first line of a description, and the rest as one paragraph."""
    first, _, rest = description.strip().partition("\n")
    return first, " ".join(rest.split())


def _headline(run: Run, named: bool) -> list[str]:
    lines = [line for part in run.parts for line in lines_of(part)]
    kinds = dict.fromkeys(line.rate.kind for line in lines)
    sentences = [sentence for kind in kinds for sentence in headline(_of_kind(lines, kind))]
    return [f"{run.name}: {sentence}" for sentence in sentences] if named else sentences


def _facts(runs: Sequence[Run], lines: Sequence[PartLine]) -> list[tuple[str, str]]:
    """Return the key figures below the title: names and values."""
    parts = [part for run in runs for part in run.parts]
    rows = [row for line in lines for row in line.rows]
    clients = [float(len({c for part in run.parts for c in part.clients})) for run in runs]
    full = [x for line in lines if line.is_full_precision for x in line.megabytes]
    small = [x for line in lines if not line.is_full_precision for x in line.megabytes]
    facts = [("clients", span(clients, 0))]
    budgets = [row.budget_bytes / MB for row in rows]
    for name, sizes in (("budgets", budgets), ("full precision", full), ("compressed", small)):
        if sizes:
            facts.append((f"{name}, MB", span(sizes, size_digits(sizes))))
    if kinds := _precisions(parts):
        facts.append(("full precision is", kinds))
    if texts := normalizers_of(rows):
        facts.append(("text normalizer", ", ".join(texts)))
    facts.append(("test clips per client", span([float(row.clips) for row in rows], 0)))
    seconds = sum(float(part.timing.get("seconds", 0)) for part in parts)
    if seconds:
        facts.append(("time taken", time_words(seconds)))
    return facts


def _precisions(parts: Sequence[Part]) -> str:
    """Return the types in which the full-precision models were held and computed (`model.dtype`);
    empty if all are float32, which is what the words mean elsewhere."""
    kinds = list(dict.fromkeys(part.scenario.model.dtype for part in parts))
    return "" if kinds in ([], ["float32"]) else ", ".join(kinds)


def _notes(parts: Sequence[Part], compared: Sequence[Compared]) -> list[str]:
    notes = []
    if not all(any(plan.of for plan in part.plans) for part in parts if part.rows):
        notes.append(
            "The clients kept no counts of single clips. Intervals are therefore known only for"
            " single clients, and methods are not compared. For both, set study: true in the"
            " scenario and run it again."
        )
    if len(compared) >= _MANY_COMPARISONS:
        chance = len(compared) / 20
        notes.append(
            f"There are {len(compared)} comparisons. Even if no two models differed, about"
            f" {chance:.0f} of them would look different by chance."
        )
    return notes


def _embedded(figure: Figure) -> dict[str, Any]:
    """Return a figure for the page, with its title as text and the width of its container."""
    spec = figure.chart.to_dict()
    title = spec.pop("title")
    if "width" in spec:
        spec["width"] = "container"
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return {
        "name": figure.name,
        "title": title["text"],
        "reading": " ".join(filter(None, (title.get("subtitle", ""), figure.note))),
        "spec": spec,
        "min_width": figure.min_width,
    }


def _commands(run: Run) -> list[str]:
    arguments = {"run": run.path / "scenario.yaml", "report": run.path}
    return [f"fedsim {verb} {shlex.quote(str(path))}" for verb, path in arguments.items()]


def _versions(run: Run) -> dict[str, str]:
    return dict(next((part.versions for part in run.parts if part.versions), {}))


def _of_kind(lines: Sequence[PartLine], kind: str) -> list[PartLine]:
    return [line for line in lines if line.rate.kind == kind]
