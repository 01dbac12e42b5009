"""What the server knows of an exchange before it reads the answer, for the rules of answers."""

from __future__ import annotations

from fedsim.protocol import messages as m
from fedsim.protocol.known import Known
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.scenario.cells import LOSSES, measure_of
from fedsim_server.messaging import Outgoing
from fedsim_server.planner import Planner


def known_of(sent: Outgoing, summary: m.Summary | None, planner: Planner) -> Known:
    """Return what is known of the answer to a request; `summary` is the client's, once it sent one.

    All that can be computed is: the exact bytes of each model, and which inputs have ranges.
    """
    spoken = planner.in_language is not None or planner.scenario.model.vocabulary is not None
    if summary is not None:
        planner = planner.of(summary)
    scenario, layers, message = planner.scenario, planner.bank.layers, sent.message
    candidates: tuple[m.Candidate, ...] = getattr(message, "candidates", ())
    sizes = []
    if summary is not None:
        sizes = [planner.file_bytes(summary, candidate.bits) for candidate in candidates]
    if isinstance(message, m.Evaluation) and message.full_precision:
        sizes.insert(0, planner.full_bytes)
    corpus, model = scenario.corpus, planner.public.model
    return Known(
        layers=len(layers),
        depths=planner.sizes.depths,
        clips=corpus.test_clips if isinstance(message, m.Evaluation) else corpus.tuning_clips,
        plain=scenario.privacy.chosen.plain,
        table=measure_of(scenario) == LOSSES,
        spoken=spoken,
        sizes=tuple(sizes),
        static=tuple(CALIBRATORS[candidate.calibration].static for candidate in candidates),
        recognizes=model.task != "classify",
        loops=model.needs_tokens,
    )
