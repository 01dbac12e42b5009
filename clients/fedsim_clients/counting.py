"""Counting errors of hypotheses of one client's test clips, as the server requests it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsim.protocol import messages as m
from fedsim.speech.clips import ClientData
from fedsim.speech.models.base import Hypothesis
from fedsim.speech.normalizers import normalizer
from fedsim.speech.rare import rarity
from fedsim.speech.scoring import Errors, Measured, count_correct, count_errors, mark_looped


def measured_by(evaluation: m.Evaluation, task: str) -> Measured:
    """Return what the interval and the counts of single clips are of."""
    if task == "classify":
        return "accuracy"
    return "cer" if evaluation.metric == "cer" else "wer"


def counter(
    data: ClientData, evaluation: m.Evaluation, measured: Measured
) -> Callable[[Sequence[Hypothesis]], list[Errors]]:
    """Return f(hypotheses of the test clips) -> the counts of each clip.

    Raises `FedsimError` where rare words are requested and a clip's language has no list of words.
    """
    references = [u.text or "" for u in data.test]
    texts, beyond = evaluation.text_normalizer, evaluation.rare_beyond
    normalize = normalizer(texts)
    languages = [u.language or data.language for u in data.test]
    known = {one: rarity(one, beyond, texts) for one in languages if beyond}

    def count(reference: str, hypothesis: Hypothesis, language: str | None) -> Errors:
        if measured == "accuracy":
            counts = count_correct([reference], [hypothesis.text])
        else:
            is_rare = known.get(language)
            counts = count_errors([reference], [hypothesis.text], normalize, is_rare)
        return mark_looped(counts, measured) if hypothesis.looped else counts

    return lambda hypotheses: list(map(count, references, hypotheses, languages))
