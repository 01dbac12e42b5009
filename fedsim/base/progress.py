"""Live progress on a terminal or in a notebook: stage, clients done, rate, time left, failures.

Code calls `progress.current().advance()` whether or not the progress is shown anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Progress:
    """Counts clients and shows nothing, for use without a terminal. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: Sequence[str] = ()
        self._stage = ""
        self._part = ""
        self._total = self._done = self._failed = 0
        self._start = clock()

    def start(self, total_clients: int, stages: Sequence[str]) -> None:
        """Begin a run with this many clients and these stages."""
        self._stages, self._failed = tuple(stages), 0
        self.stage(stages[0] if stages else "", total_clients)

    def part(self, number: int, parts: int) -> None:
        """Note that run `number` of several begins."""
        self._part = f"{number}/{parts}: "

    def stage(self, name: str, total: int) -> None:
        """Begin a stage with `total` clients."""
        self._stage, self._total, self._done = name, total, 0
        self._start = self._clock()

    def advance(self, n: int = 1) -> None:
        """Count `n` more clients as done, including those that failed."""
        self._done += n

    def fail(self) -> None:
        """Count one more failed client; count it as done too, with `advance`."""
        self._failed += 1

    def close(self) -> None:
        """End the display."""

    def line(self) -> str:
        """Return the counts, the rate and the time left as one line of text."""
        parts = [f"{self._done:,}/{self._total:,} clients"]
        seconds = self._clock() - self._start
        if self._done and seconds > 0:
            rate = self._done / seconds
            parts.append(f"{rate:.3g} clients/s" if rate < 100 else f"{rate:,.0f} clients/s")
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        return "  ".join(parts)

    def title(self) -> str:
        """Return the stage and its number among all stages."""
        if self._stage not in self._stages or len(self._stages) == 1:
            return self._part + self._stage
        return (
            f"{self._part}{self._stage} ({self._stages.index(self._stage) + 1}/{len(self._stages)})"
        )

    def done(self) -> tuple[int, int]:
        """Return how many clients of the stage are done, and its total."""
        return self._done, self._total


class TerminalProgress(Progress):
    """Draws the progress on the last line of the terminal, four times per second."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        super().__init__(clock)
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=4, transient=True
        )

    def start(self, total_clients: int, stages: Sequence[str]) -> None:
        """Begin a run, and begin to draw if this is the first."""
        super().start(total_clients, stages)
        self._live.start()  # does nothing if it is drawing already

    def close(self) -> None:
        """Remove the line from the terminal."""
        self._live.stop()

    def _draw(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)  # the bar takes the remaining width
        grid.add_column(no_wrap=True)
        done, total = self.done()
        bar = ProgressBar(total=max(total, 1), completed=done)
        grid.add_row(self.title(), bar, self.line())
        return grid


class NotebookProgress(Progress):
    """Draws the progress below a notebook's cell, at most four times per second.

    Args:
        update: replaces what is shown by some HTML.
        clock: returns seconds.
    """

    def __init__(
        self, update: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self._update, self._drawn = update, -math.inf

    def stage(self, name: str, total: int) -> None:
        """Begin a stage with `total` clients, and show it."""
        super().stage(name, total)
        self._draw()

    def advance(self, n: int = 1) -> None:
        """Count `n` more clients as done."""
        super().advance(n)
        if self._clock() - self._drawn >= _REDRAW_S or self._done >= self._total:
            self._draw()

    def close(self) -> None:
        """Leave nothing below the cell."""
        self._update("")

    def _draw(self) -> None:
        self._drawn = self._clock()
        done, total = self.done()
        self._update(
            f"<div>{escape(self.title())}"
            f' <progress max="{max(total, 1)}" value="{min(done, total)}"></progress>'
            f" {escape(self.line())}</div>"
        )


_REDRAW_S = 0.25
_current: ContextVar[Progress | None] = ContextVar("fedsim_progress", default=None)


def current() -> Progress:
    """Return the progress in use, or one that shows nothing."""
    return _current.get() or Progress()


@contextmanager
def show(console: Console) -> Iterator[Progress]:
    """Make `current()` draw on `console`, if it is a terminal or a notebook, until the block
    ends."""
    progress = Progress()
    if console.is_jupyter:
        progress = NotebookProgress(_below_the_cell())
    elif console.is_terminal:
        progress = TerminalProgress(console)
    with using(progress):
        try:
            yield progress
        finally:
            progress.close()


@contextmanager
def using(progress: Progress) -> Iterator[None]:
    """Make `current()` return `progress` until the block ends."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def _below_the_cell() -> Callable[[str], None]:
    """Return what shows some HTML below the notebook's cell, in place of what it showed before.

    IPython is there wherever a notebook is; rich's own bars would need ipywidgets too.
    """
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
