"""Valid answers of any device, and one way to break each rule that they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from fedsim.protocol import messages as m
from fedsim.protocol.checks import MAX_BYTES, MAX_SECONDS
from fedsim.protocol.known import Known
from fedsim.protocol.score_checks import MAX_COUNT
from fedsim.quant.quantiles import QUANTILES

LEGAL = (2, 3, 4, 6, 8)
LARGEST = 3.4e38
VALUE = st.floats(-LARGEST, LARGEST)
LOSS = st.floats(0, LARGEST)
NO_NUMBER = st.sampled_from([math.nan, math.inf, -math.inf, 1e39, -1e39, 1e308])
COUNT = st.integers(0, 1000)
NO_COUNT = st.sampled_from([-1, -1000, MAX_COUNT + 1, 2**63 - 1, -(2**63)])


@dataclass(frozen=True)
class Exchange:
    """A request, its answer, and what the server knows."""

    request: m.Message
    answer: m.Message
    known: Known

    def but(self, **fields) -> Exchange:
        """The same with other values of some fields of the answer."""
        return replace(self, answer=replace(self.answer, **fields))


def some(draw, values, n):
    return tuple(draw(st.lists(values, min_size=n, max_size=n)))


@st.composite
def sensed(draw) -> Exchange:
    """A Summary that keeps every rule."""
    layers, table, plain = draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans())
    request = m.SenseRequest(
        "loss" if table else draw(st.sampled_from(["", "median"])),
        quantiles=draw(st.booleans()),
        workload=draw(st.booleans()),
    )
    known = Known(layers, LEGAL, 16, plain=plain, table=table, spoken=draw(st.booleans()))
    measured = plain and bool(request.measure)
    depths = LEGAL if measured and table else ()
    size = layers * max(1, len(depths)) * measured
    rising = (sorted(some(draw, VALUE, len(QUANTILES))) for _ in range(layers * request.quantiles))
    answer = m.Summary(
        "ann",
        draw(st.integers(1, MAX_BYTES)),
        tuple(sorted(draw(st.sets(st.sampled_from(LEGAL), min_size=1)))),
        draw(st.integers(0, known.clips)),
        some(draw, LOSS if table else VALUE, size),
        tuple(value for layer in rising for value in layer),
        some(draw, st.floats(0, MAX_SECONDS), 2 * request.workload),
        depths=depths,
        language=draw(st.sampled_from(["", "it", "中文"])) if known.spoken else "",
    )
    return Exchange(request, answer, known)


def candidate(draw, layers, *, rounded=False) -> m.Candidate:
    blobs = b"" if rounded else bytes(m.HASH_BYTES * layers)
    bits = some(draw, st.sampled_from(LEGAL), layers)
    return m.Candidate("one", "minmax", "ann", bits, blobs, (8,) * layers)


NAN_PAIR = (math.nan, math.nan)
RANGE = st.one_of(
    st.just(NAN_PAIR),
    st.tuples(st.floats(-LARGEST, -1e-30), st.floats(0, LARGEST)),
    st.tuples(st.just(0.0), st.floats(1e-30, LARGEST)),
)


@st.composite
def received(draw) -> Exchange:
    """A Receipt that keeps every rule."""
    layers, returned = draw(st.integers(1, 3)), draw(st.booleans())
    rounded = draw(st.lists(st.booleans(), max_size=3))
    static = tuple(draw(st.booleans()) for _ in rounded)
    candidates = tuple(candidate(draw, layers, rounded=one) for one in rounded)
    sizes = some(draw, st.integers(1, 10**9), len(rounded))
    pairs = [draw(RANGE) if one else NAN_PAIR for one in static for _ in range(layers)]
    answer = m.Receipt(
        "ann",
        sizes,
        tuple(end for pair in pairs for end in pair) if returned else (),
        bytes(m.HASH_BYTES * layers * sum(rounded)) if returned else b"",
    )
    known = Known(layers, LEGAL, 16, sizes=sizes, static=static)
    return Exchange(m.Delivery(returned, candidates), answer, known)


@st.composite
def tested(draw) -> Exchange:
    """Scores that keep every rule."""
    layers, clips = 2, draw(st.integers(1, 5))
    full, models = draw(st.booleans()), draw(st.integers(0, 2))
    recognizes, each = draw(st.booleans()), draw(st.booleans())
    loops = recognizes and draw(st.booleans())
    workload = draw(st.booleans())
    metric = draw(st.sampled_from(["wer", "cer"]))
    beyond = draw(st.sampled_from([0, 5_000]))
    candidates = tuple(candidate(draw, layers) for _ in range(models))
    request = m.Evaluation(full, candidates, each, workload, metric=metric, rare_beyond=beyond)
    n = models + full
    of = some(draw, COUNT, clips) if recognizes else (1,) * clips
    wrong = [some(draw, COUNT if recognizes else st.integers(0, 1), clips) for _ in range(n)]
    sums, words = tuple(map(sum, wrong)), sum(of)
    low = some(draw, st.floats(0, 0.5), n)
    unknown = recognizes and not words
    looped = [draw(st.integers(0, clips)) for _ in range(n * loops)]
    part = [draw(st.integers(0, s)) if k else 0 for k, s in zip(looped, sums, strict=False)]
    names = ["errors", "words", "char_errors", "chars"]
    if metric == "cer":  # what is summed here are then characters
        names = [*names[2:], *names[:2]]
    counted = recognizes and bool(beyond)
    # Errors and words in words, whichever of the two counts they are.
    most = [2 * s for s in sums] if metric == "cer" else sums
    rare = draw(st.integers(0, 5 * words if metric == "cer" else words))
    counts = sums, (words,) * n, tuple(2 * s for s in sums), (5 * words,) * n
    answer = m.Scores(
        client="ann",
        clips=clips,
        file_bytes=some(draw, st.integers(1, 10**9), n),
        **(dict(zip(names, counts, strict=True)) if recognizes else dict.fromkeys(names, ())),
        correct=() if recognizes else tuple(clips - s for s in sums),
        low=(math.nan,) * n if unknown else low,
        high=(math.nan,) * n if unknown else tuple(x + draw(st.floats(0, 0.5)) for x in low),
        looped=tuple(looped),
        looped_errors=tuple(part),
        looped_words=tuple(words if k else 0 for k in looped),
        clip_wrong=tuple(w for one in wrong for w in one) if each else (),
        clip_of=of * n if each else (),
        workload=some(draw, st.floats(0, MAX_SECONDS), 1 * workload),
        rare_errors=tuple(draw(st.integers(0, min(rare, s))) for s in most) if counted else (),
        rare_words=(rare,) * n if counted else (),
    )
    known = Known(layers, LEGAL, 9, sizes=answer.file_bytes, recognizes=recognizes, loops=loops)
    return Exchange(request, answer, known)


VALID = {m.Summary: sensed(), m.Receipt: received(), m.Scores: tested()}


def at(values, place, value):
    return (*values[:place], value, *values[place + 1 :])


def other_length(draw, values):
    """One value fewer or more."""
    if values and draw(st.booleans()):
        return values[:-1]
    return (*values, values[-1] if values else 0)


def spoiled(draw, exchange, name, values):
    """One value of a field replaced; None if it has none."""
    found = getattr(exchange.answer, name)
    if not found:
        return None
    place = draw(st.integers(0, len(found) - 1))
    return exchange.but(**{name: at(found, place, draw(values))})


def lengths(draw, exchange):
    names = ("errors", "words", "char_errors", "chars", "correct", "looped", "low", "high")
    names = (*names, "rare_errors", "rare_words")
    name = draw(st.sampled_from(names))
    return exchange.but(**{name: other_length(draw, getattr(exchange.answer, name))})


def depths(draw, exchange):
    bad = draw(st.sampled_from([(), (4, 2), (2, 2), (2, 64), (-1,), (2**62,)]))
    return exchange.but(bit_depths=bad)


def falling(draw, exchange):
    values = exchange.answer.quantiles
    if not values:
        return exchange.but(quantiles=(1.0,))
    changed = draw(st.sampled_from([(1.0, 0.0), (math.nan, 0.0), (0.0, math.inf)]))
    return exchange.but(quantiles=(*changed, *values[2:]))


def ranges(draw, exchange):
    values = exchange.answer.ranges
    if not values:
        return exchange.but(ranges=(0.0, 1.0))
    place = 2 * draw(st.integers(0, len(values) // 2 - 1))
    pairs = [(1.0, -1.0), (0.0, 0.0), (0.0, 1e308), (-math.inf, 0.0), (math.nan, 1.0), (1.0, 2.0)]
    low, high = draw(st.sampled_from(pairs))
    return exchange.but(ranges=(*values[:place], low, high, *values[place + 2 :]))


def same_references(draw, exchange):
    words = exchange.answer.words
    return exchange.but(words=at(words, 0, words[0] + 1)) if len(words) > 1 else None


def both_errors(draw, exchange):
    errors = exchange.answer.errors
    return exchange.but(char_errors=at(errors, 0, 0 if errors[0] else 1)) if errors else None


def interval(draw, exchange):
    if not exchange.answer.low:
        return None
    bad = [(-0.1, 0.5), (0.6, 0.5), (0.1, math.inf), (math.nan, 0.5), (0.5, math.nan)]
    low, high = draw(st.sampled_from(bad))
    answer = exchange.answer
    return exchange.but(low=at(answer.low, 0, low), high=at(answer.high, 0, high))


def looped(draw, exchange):
    answer = exchange.answer
    if not answer.looped:
        return None
    errors = answer.char_errors if exchange.request.metric == "cer" else answer.errors
    bad = (-1, answer.clips + 1)
    return draw(
        st.sampled_from(
            [
                *(exchange.but(looped=at(answer.looped, 0, n)) for n in bad),
                exchange.but(looped_errors=at(answer.looped_errors, 0, errors[0] + 1)),
                exchange.but(looped_words=at(answer.looped_words, 0, -1)),
                exchange.but(looped=at(answer.looped, 0, 0), looped_words=(1,) * len(answer.words)),
            ]
        )
    )


def rare(draw, exchange):
    answer = exchange.answer
    wrong, of = answer.rare_errors, answer.rare_words
    if not of:
        return None
    everywhere = [answer.words[0] + 1, -1]
    bad = [
        *(exchange.but(rare_words=(n,) * len(of)) for n in everywhere),
        *(exchange.but(rare_errors=at(wrong, 0, n)) for n in (-1, of[0] + 1, answer.errors[0] + 1)),
    ]
    if len(of) > 1:
        bad.append(exchange.but(rare_words=at(of, 0, of[0] + 1)))
    return draw(st.sampled_from(bad))


def clip_values(draw, exchange):
    bad = NO_COUNT if exchange.known.recognizes else st.sampled_from([-1, 2, 2**62])
    return spoiled(draw, exchange, draw(st.sampled_from(["clip_wrong", "clip_of"])), bad)


def clip_sums(draw, exchange):
    """Another division of the same sums, or another sum."""
    answer = exchange.answer
    if not answer.clip_of:
        return None
    if exchange.known.recognizes:
        return exchange.but(clip_wrong=at(answer.clip_wrong, 0, answer.clip_wrong[0] + 1))
    return exchange.but(clip_wrong=at(answer.clip_wrong, 0, 1 - answer.clip_wrong[0]))


BREAKS = {
    "budget": lambda draw, x: x.but(
        budget_bytes=draw(st.sampled_from([0, -1, -(2**63), MAX_BYTES + 1, 2**63 - 1]))
    ),
    "runtime_depths": depths,
    "tuning_clips": lambda draw, x: x.but(clips=draw(st.sampled_from([-1, 17, 2**62]))),
    "table_depths": lambda draw, x: x.but(
        depths=draw(st.sampled_from([(2, 64), (2,), (8, 6, 4, 3, 2)]))
    ),
    "profile_size": lambda draw, x: x.but(sensitivity=other_length(draw, x.answer.sensitivity)),
    "profile_values": lambda draw, x: spoiled(
        draw, x, "sensitivity", NO_NUMBER if not x.known.table else NO_NUMBER | st.just(-0.5)
    ),
    "quantiles": falling,
    "tuning_workload": lambda draw, x: x.but(
        workload=draw(st.sampled_from([(1.0,), (1.0, -1.0), (math.nan, 1.0), (1e10, 1.0)]))
    ),
    "language": lambda draw, x: x.but(language=draw(st.sampled_from(["x" * 49, "a\nb", "\x1b["]))),
    "sizes": lambda draw, x: x.but(
        file_bytes=at(x.answer.file_bytes, 0, draw(st.sampled_from([-1, 0, 10**10, 2**63 - 1])))
    ),
    "ranges": ranges,
    "layer_names": lambda draw, x: x.but(blobs=x.answer.blobs + bytes(m.HASH_BYTES)),
    "tested_clips": lambda draw, x: x.but(clips=draw(st.sampled_from([0, -1, 10, 2**62]))),
    "lengths": lengths,
    "counts": lambda draw, x: spoiled(
        draw, x, draw(st.sampled_from(["errors", "words", "char_errors", "chars"])), NO_COUNT
    ),
    "same_references": same_references,
    "both_errors": both_errors,
    "correct": lambda draw, x: spoiled(draw, x, "correct", st.sampled_from([-1, 10, 2**62])),
    "interval": interval,
    "looped": looped,
    "rare": rare,
    "clip_counts": lambda draw, x: x.but(clip_wrong=other_length(draw, x.answer.clip_wrong)),
    "clip_values": clip_values,
    "clip_sums": clip_sums,
    "tested_workload": lambda draw, x: x.but(
        workload=draw(st.sampled_from([(1.0, 1.0), (-1.0,), (math.nan,), (math.inf,)]))
    ),
}
"""Name of a check -> f(draw, exchange) -> the exchange with an answer that breaks its rule; None if
this answer has nothing that can be broken so."""
