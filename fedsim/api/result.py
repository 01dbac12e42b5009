"""What a run folder holds: a table, comparisons, figures, and the report."""

from __future__ import annotations

import html
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.api.naming import find_line
from fedsim.base.units import count_words
from fedsim.errors import FedsimError
from fedsim.results.labels import plain_value
from fedsim.results.lines import Kind
from fedsim.results.rare import has_rare
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part, Run
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from fedsim.report.style import AnyChart

_MAX_NAMED = 8
_NOTHING = object()


@dataclass(frozen=True)
class Difference:
    """How two methods differ on the same clips: the first's rate minus the second's.

    In percentage points of `metric`: −3.0 points of WER are three fewer errors per hundred words.
    """

    first: str
    second: str
    metric: Kind
    difference: float
    low: float
    """Lower end of the 95 % interval; NaN if a single clip was tested."""
    high: float
    verdict: str
    """On the first: `better`, `worse`, or `not distinguishable` where the interval holds 0."""
    more_clips: int | None
    """How many more clips would decide an undecided comparison in four studies of five."""
    sentence: str
    """All of it in words."""

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.sentence)}</p>"


@dataclass(frozen=True)
class StudyResult:
    """The result of a run, read from its folder; `fedsim.run` and `fedsim.open_run` make it."""

    run: Run
    """The folder as it was read: its parts, with rows, plans and events."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.path

    @property
    def study(self) -> Scenario:
        """The study that was run."""
        return self.run.scenario

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing, a sentence each; empty if every client finished."""
        return self.run.gaps

    @property
    def table(self) -> Any:
        """One line per method (and combination of a matrix): a DataFrame if pandas is installed,
        else a list of dicts.

        Columns: the settings that differ, `method`, `tuned_on` (`own`, `other`, `-`), `clients`,
        the smallest and largest model in MB of 2^20 bytes (`mb_min`, `mb_max`) and in mean bits per
        weight (`bits_min`, `bits_max`), `metric` (WER, CER, accuracy), and its value over all
        clients together with a 95 % interval, in percent (`percent`, `low`, `high`). With
        `rare_beyond` also the errors on rare words, in percent of these (`rare_percent`,
        `rare_low`, `rare_high`).
        """
        lines = [line for part in self.run.parts for line in lines_of(part)]
        rare = any(has_rare(line.rows) for line in lines)
        return _frame([{**_record(line), **(_rare(line) if rare else {})} for line in lines])

    @property
    def rows(self) -> Any:
        """One row per client, method and source of the plan, as in `results.parquet`: a DataFrame
        if pandas is installed, else a list of dicts. Rates are fractions."""
        return _frame(
            [{**_settings(part), **asdict(row)} for part in self.run.parts for row in part.rows]
        )

    @property
    def figures(self) -> Mapping[str, AnyChart]:
        """The figures of the report by name, as Altair charts; a notebook shows one as it is."""
        from fedsim.report.figure_selection import figures_of, fleet_figures

        parts = self.run.parts
        return {figure.name: figure.chart for figure in (*figures_of(parts), *fleet_figures(parts))}

    @property
    def finding(self) -> str:
        """What was found, in one plain sentence."""
        from fedsim.report.findings import finding

        return finding(self.run.parts)

    def compare(self, first: str, second: str, /, **settings: Any) -> Difference:
        """Return how two methods differ on the same clips of the same clients.

        Args:
            first: a method as in the column `method`, or how it begins (`knapsack`); with
                `, others' clips` after it, the model that was tuned on another client's clips.
            second: the method to compare with.
            settings: for a matrix, which combination, by the last word of a key or with `__` for
                dots: `budget_mb=30`.

        Raises:
            FedsimError: no method or combination, or several, are named so; or the run has no
                counts of single clips (`study: true` keeps them).
        """
        from fedsim.report.findings import difference

        part = self._part(settings)
        one, two = find_line(lines_of(part), first), find_line(lines_of(part), second)
        found = difference(one, two)
        if found is None:
            raise FedsimError(
                f"{self.folder}: the run kept no counts of single clips: set study: true and run it"
                f" again"
            )
        kind = one.rate.kind
        return Difference(
            first=one.name,
            second=two.name,
            metric=kind,
            difference=100 * found.difference,
            low=100 * found.low,
            high=100 * found.high,
            verdict=found.verdict,
            more_clips=found.more_clips,
            sentence=found.sentence(one.phrase, two.phrase, kind) + ".",
        )

    def report(
        self,
        out: str | os.PathLike[str] | None = None,
        figures: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the report, one HTML file that needs no network, and return its path.

        Args:
            out: the file; None for `report.html` in the run folder.
            figures: a folder for every figure as HTML, SVG and PNG, or None.

        Raises:
            FedsimError: a file cannot be written.
        """
        from fedsim.report.page import write_report

        file, drawn = (None if place is None else Path(place) for place in (out, figures))
        return write_report([self.folder], file, drawn).path

    def _part(self, settings: Mapping[str, Any]) -> Part:
        """Return the only combination with these settings."""
        wanted = {key.replace("__", "."): value for key, value in settings.items()}
        parts = [part for part in self.run.parts if _fits(part, wanted)]
        if len(parts) == 1:
            return parts[0]
        known = "; ".join(part.label for part in self.run.parts[:_MAX_NAMED])
        which = ", ".join(f"{key}={plain_value(value)}" for key, value in wanted.items())
        fit = f"{len(parts)} combinations" if parts else "no combination"
        raise FedsimError(
            f"{self.folder}: {which or 'no setting'} fits {fit}: name one of {known or 'none'}"
        )

    def __repr__(self) -> str:
        parts = self.run.parts
        clients = {client for part in parts for client in part.clients}
        methods = {line.method for part in parts for line in lines_of(part)}
        return (
            f"<StudyResult {self.run.name}: {count_words(len(clients), 'client')},"
            f" {count_words(len(methods), 'method')}, in {self.folder}>"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the finding, the table, and a link to the report."""
        from fedsim.api.notebook import plain_table
        from fedsim.report.htmltables import results_table

        lines = [line for part in self.run.parts for line in lines_of(part)]
        report = self.folder / "report.html"
        link = f'<p><a href="{report.absolute().as_uri()}">report.html</a></p>'
        gaps = "".join(f"<p>{html.escape(gap)}</p>" for gap in self.gaps)
        return (
            f"<p>{html.escape(self.finding)}</p>{gaps}{plain_table(results_table(lines))}"
            f"{link if report.is_file() else ''}"
        )


def _frame(records: list[dict[str, Any]]) -> Any:
    if importlib.util.find_spec("pandas") is None:
        return records
    import pandas as pd  # half a second, and not a dependency

    return pd.DataFrame.from_records(records)


def _settings(part: Part) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str | int | float) else plain_value(value)
        for key, value in part.settings.items()
    }


def _record(line: PartLine) -> dict[str, Any]:
    return {
        **_settings(line.part),
        "method": line.method,
        "tuned_on": line.source.value,
        "clients": line.clients,
        "mb_min": min(line.megabytes),
        "mb_max": max(line.megabytes),
        "bits_min": min(line.mean_bits),
        "bits_max": max(line.mean_bits),
        "metric": line.rate.kind,
        "percent": line.rate.value,
        "low": line.rate.low,
        "high": line.rate.high,
    }


def _rare(line: PartLine) -> dict[str, float | None]:
    names = ("rare_percent", "rare_low", "rare_high")
    found = (None,) * 3 if line.rare is None else (line.rare.value, line.rare.low, line.rare.high)
    return dict(zip(names, found, strict=True))


def _fits(part: Part, wanted: Mapping[str, Any]) -> bool:
    def value(key: str) -> Any:
        return next(
            (v for k, v in part.settings.items() if k == key or k.endswith(f".{key}")), _NOTHING
        )

    return all(value(key) == wanted[key] for key in wanted)
