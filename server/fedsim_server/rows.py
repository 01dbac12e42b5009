"""A client's scores as rows and plans of the ledger."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from fedsim.protocol import messages as m
from fedsim.quant.allocation import mean_bits
from fedsim.quant.runtimes import EMULATED
from fedsim.results.rows import ACCURACY, Plan, Row
from fedsim.scenario.cells import all_cells
from fedsim.scenario.methods import FULL_PRECISION, NO_CLIENT, NOBODY
from fedsim_server.planner import Planner

FULL_BITS = 32.0


def result_rows(
    sent: m.Evaluation, scores: m.Scores, summary: m.Summary, planner: Planner
) -> list[Row]:
    """Return one row per model that a client tested; `summary` is the client's own."""
    n_weights = [layer.n_weights for layer in planner.layers(summary)]
    cells = {cell.label: cell for cell in all_cells(planner.scenario)}
    full: list[m.Candidate | None] = [None] if sent.full_precision else []
    rows = []
    for index, tested in enumerate([*full, *sent.candidates]):
        made: dict[str, Any] = (
            {
                "method": FULL_PRECISION,
                "allocation": FULL_PRECISION,
                "calibration": NOBODY,
                "rounding": NOBODY,
                "moments": NOBODY,
                "runtime": NOBODY,
                "format": NOBODY,
                "tuned_on": NO_CLIENT,
                "mean_bits": FULL_BITS,
                "plan_sha256": "",
            }
            if tested is None
            else {
                "method": tested.name,
                "allocation": cells[tested.name].allocation,
                "calibration": NOBODY if tested.runtime != EMULATED else tested.calibration,
                "runtime": tested.runtime,
                "format": planner.scenario.clients.format,
                "rounding": cells[tested.name].rounding,
                "moments": cells[tested.name].moments,
                "tuned_on": tested.tuned_on,
                "mean_bits": mean_bits(tested.bits, n_weights),
                "plan_sha256": hashlib.sha256(bytes(tested.bits)).hexdigest(),
            }
        )
        rows.append(
            Row(
                client=scores.client,
                budget_bytes=summary.budget_bytes,
                file_bytes=scores.file_bytes[index],
                clips=scores.clips,
                **made,
                **_counts(sent, scores, index),
            )
        )
    return rows


def tested_plans(sent: m.Evaluation, scores: m.Scores, rows: list[Row]) -> list[Plan]:
    """Return the plan of each row; `rows` are in the order tested."""
    bits = [()] * sent.full_precision + [c.bits for c in sent.candidates]
    n = scores.clips if sent.clip_counts else 0
    return [
        Plan(
            row.client,
            row.method,
            row.tuned_on,
            depths,
            scores.clip_wrong[i * n : (i + 1) * n],
            scores.clip_of[i * n : (i + 1) * n],
        )
        for i, (row, depths) in enumerate(zip(rows, bits, strict=True))
    ]


def _counts(sent: m.Evaluation, scores: m.Scores, index: int) -> dict[str, Any]:
    """Return the counts and rates of one model, and how they were counted; those of the other task
    are None."""
    names = (
        *("errors", "words", "char_errors", "chars", "correct"),
        *("looped", "looped_errors", "looped_words"),
        *("rare_errors", "rare_words"),
    )
    counts = {n: getattr(scores, n)[index] if getattr(scores, n) else None for n in names}
    recognizes = counts["words"] is not None
    whole = ("char_errors", "chars") if sent.metric == "cer" else ("errors", "words")
    parts = zip(whole, ("looped_errors", "looped_words"), strict=True)
    errors, words = (_rest(counts[all_], counts[part]) for all_, part in parts)
    return counts | {
        "metric": sent.metric if recognizes else ACCURACY,
        "text_normalizer": sent.text_normalizer if recognizes else NOBODY,
        "rate_without_loops": _rate(errors, words),
        "rare_beyond": sent.rare_beyond if counts["rare_words"] is not None else None,
        "rare_rate": _rate(counts["rare_errors"], counts["rare_words"]),
        "low": _finite(scores.low[index]),
        "high": _finite(scores.high[index]),
        "wer": _rate(counts["errors"], counts["words"]),
        "cer": _rate(counts["char_errors"], counts["chars"]),
        "accuracy": _rate(counts["correct"], scores.clips),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rest(count: int | None, part: int | None) -> int | None:
    return None if count is None or part is None else count - part


def _rate(count: int | None, total: int | None) -> float | None:
    return count / total if count is not None and total else None
