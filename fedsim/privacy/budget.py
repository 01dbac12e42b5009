"""What each client has spent of its privacy budget, in a file that outlives a run.

A device calls `spend` before it draws any noise. Each spending belongs to a request. The same
request again, from a retry or a continued run, costs nothing more, and `answer_once` returns the
release that was made the first time: a second draw of noise would be a second release.

Epsilon and delta are summed: basic composition (Dwork and Roth 2014, "The Algorithmic Foundations
of Differential Privacy", Theorem 3.16). That is sound for any sequence of releases, also where a
later one is chosen after the answers to earlier ones (Rogers et al. 2016, "Privacy Odometers and
Filters"). It is not tight: many releases by one mechanism cost less than their sum
(`accounting.compose`).

The file is SQLite with one transaction per spending, so a spending is counted completely or not at
all, also after kill -9, and by one process at a time. A device that is killed between spending and
answering has released nothing; it can still do so without spending again. What is damaged, emptied
or gone is refused, not taken for a new budget: see `budget_file`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.privacy.budget_file import LOCK_TIMEOUT_S, open_account

SPENT = "privacy.sqlite"
"""The file of privacy spending; in the folder that `HOME` names, else in the run folder."""
HOME = "FEDSIM_PRIVACY_DIR"
"""Environment variable: the device's own folder, where its budget holds across runs."""
# Sums are exact in whole numbers of these: three times 0.1 is 0.3. In SQLite's 64 bits they reach
# an epsilon of 9e9 and a delta of 9.
_EPSILON_UNIT = Decimal("1e-9")
_DELTA_UNIT = Decimal("1e-18")


@dataclass(frozen=True)
class Limit:
    """The privacy budget of one client: the maximum that all its releases may cost together."""

    epsilon: float
    delta: float


UNLIMITED = Limit(1e9 - 1, 9.0)
"""A budget that no client exhausts."""


def spend(
    path: str | Path,
    client: str,
    request: str,
    epsilon: float,
    delta: float,
    limit: Limit,
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> bool:
    """Count one release of a client and return True, or return False if it would exceed the limit.

    A request that was counted before is granted and costs nothing more. A refused one costs
    nothing. The file is created if it does not exist and nothing beside it tells of a spending.

    Raises:
        FedsimError: if a number is negative or not finite, or if the file is damaged, emptied or
            gone, or cannot be read or written, for instance because it is locked for longer than
            `lock_timeout_s`; then nothing may be released.
    """
    for name, value in (
        ("epsilon", epsilon),
        ("delta", delta),
        ("limit on epsilon", limit.epsilon),
        ("limit on delta", limit.delta),
    ):
        if not 0 <= value < 1e9:
            raise FedsimError(
                f"client {client!r}: the {name} of its privacy budget is {value}; give a number"
                " from 0 to 1e9"
            )
    cost = _units(epsilon, _EPSILON_UNIT, ROUND_CEILING), _units(delta, _DELTA_UNIT, ROUND_CEILING)
    maximum = (
        _units(limit.epsilon, _EPSILON_UNIT, ROUND_FLOOR),
        _units(limit.delta, _DELTA_UNIT, ROUND_FLOOR),
    )
    with open_account(Path(path), client, lock_timeout_s) as account:
        if request in account.spendings:
            return True
        after = tuple(b + c for b, c in zip(account.total, cost, strict=True))
        if any(a > m for a, m in zip(after, maximum, strict=True)):
            return False
        account.add(request, *cost)
    return True


def answer_once(path: str | Path, client: str, request: str, make: Callable[[], bytes]) -> bytes:
    """Return the answer to a granted request: what `make` returned the first time.

    It is stored before it is returned, and so before anything leaves the device.

    Raises:
        FedsimError: if nothing was spent for the request, or the file is damaged, or cannot be read
            or written.
    """
    with open_account(Path(path), client) as account:
        if request not in account.spendings:
            raise FedsimError(
                f"client {client!r}: nothing was spent for {request!r}; call spend first"
            )
        answer = account.spendings[request].answer
        if answer is None:
            answer = make()
            account.answer(request, answer)
    return answer


def is_answered(path: str | Path, client: str, request: str) -> bool:
    """Return whether the answer to a request is stored, so that it need not be computed."""
    with open_account(Path(path), client) as account:
        spending = account.spendings.get(request)
    return spending is not None and spending.answer is not None


def spent(path: str | Path, client: str) -> tuple[float, float]:
    """Return the epsilon and the delta that a client has spent; (0, 0) for an unknown client.

    Raises `FedsimError` if the file is damaged or cannot be read.
    """
    with open_account(Path(path), client) as account:
        epsilon, delta = account.total
    return float(epsilon * _EPSILON_UNIT), float(delta * _DELTA_UNIT)


def _units(value: float, unit: Decimal, rounding: str) -> int:
    # repr gives the shortest decimal that is this float: 0.1, not 0.1000000000000000055.
    return int((Decimal(repr(float(value))) / unit).to_integral_value(rounding))
