"""Which line of a table a name means."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.errors import FedsimError, quoted
from fedsim.results.lines import Source
from fedsim.results.rates import PartLine


def find_line(lines: Sequence[PartLine], name: str) -> PartLine:
    """Return the only line that a name means.

    A name is what a table writes (`myqasr/cosine`, or with its source `myqasr/cosine, others'
    clips`), or how that begins, up to a slash: `knapsack` means `knapsack/dynamic` beside
    `knapsack/dynamic/public`, since both begin with it. Of a method that was tuned on own and on
    others' clips, a name without a source means own clips.

    Raises:
        FedsimError: no line is named so, or several are.
    """
    for match in (
        [line for line in lines if name in (line.name, line.method)],
        [line for line in lines if line.method.startswith(f"{name}/")],
    ):
        found = [line for line in match if line.source is not Source.OTHER or name == line.name]
        found = [x for x in found if all(_begins(x.method, y.method) for y in found)]
        if len(found) == 1:
            return found[0]
    known = ", ".join(dict.fromkeys(line.method for line in lines))
    several = any(line.method.startswith(f"{name}/") for line in lines)
    what = "names several methods" if several else "is not a method of this run"
    raise FedsimError(f"{quoted(name)} {what}: name one of {known}")


def _begins(short: str, long: str) -> bool:
    return long == short or long.startswith(f"{short}/")
