"""Membership inference: did a client tune on this clip?

The server, or anyone with its view, asks about one clip at a time. For each clip it has computed
releases in many worlds: with the clip among the client's tuning clips (inside) and without it
(outside), the other clips drawn anew each time. A release is then scored by which of the two kinds
it is more like (Carlini et al. 2022, "Membership Inference Attacks From First Principles").

The figure that matters is how many members are found at a very low rate of false accusations: an
average over all clips, such as the AUC, can look harmless where a few clips are always recognized.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.attacks.covariance import shrunken_covariance
from fedsim.privacy.attacks.resampling import (
    RESAMPLES,
    clopper_pearson,
    concordance,
    ratio,
    speaker_interval,
)
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.attacks.vectors import checked_vectors, random_state

FALSE_POSITIVE_RATES = (0.01, 0.001)
MIN_CLIPS = 10
MIN_WORLDS = 8
_WORLD_FOLDS = 4
_STABLE = 5  # non-members beyond a threshold, for it to be stable


def likelihood_ratio(release: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return the log-likelihood ratio of releases, with the clip against without it.

    Both are modelled as Gaussian, with separate means and one shrunken covariance: worlds are few,
    and one clip moves the release far more than it changes its spread. Features are first
    standardised over all worlds. A feature that is constant over the worlds has no effect, even if
    the release differs in it.

    Args:
        release: what the server saw, (n, d); not one of the worlds.
        inside: releases of worlds with the clip, (worlds, d).
        outside: of worlds without it, (worlds, d); their number may differ.

    Returns:
        float64 (n,), above 0 for a member.

    Raises:
        FedsimError: if there are fewer than 8 worlds of a kind, or a number is not finite.
    """
    seen, ours, theirs = _standardised(release, inside, outside)
    means = ours.mean(axis=0), theirs.mean(axis=0)
    covariance = shrunken_covariance(np.concatenate([ours - means[0], theirs - means[1]]))
    towards = np.linalg.solve(covariance, means[0] - means[1])
    return (seen - (means[0] + means[1]) / 2) @ towards


def unlikeness(release: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return how unusual releases are among those without the clip: Carlini's offline attack.

    This is the squared Mahalanobis distance from a Gaussian fitted as in `likelihood_ratio`, and
    needs no world with the clip. It shows that a release is unusual, not that this clip is why.

    Args:
        release: what the server saw, (n, d).
        outside: releases of worlds without the clip, (worlds, d).

    Returns:
        float64 (n,), larger for a likelier member.

    Raises:
        FedsimError: if there are fewer than 8 worlds, or a number is not finite.
    """
    seen, theirs = _standardised(release, outside)
    mean = theirs.mean(axis=0)
    far = seen - mean
    return (far * np.linalg.solve(shrunken_covariance(theirs - mean), far.T).T).sum(axis=1)


def world_scores(
    inside: np.ndarray, outside: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the likelihood ratio of the release of each world, fitted on other worlds.

    Every world is held out once; each fold holds out as many of either kind, because unequal
    numbers would shift the scores. Judge the scores of many targets together: those of one target
    have no common scale across folds, and the AUC of noise is then 0.46 to 0.48.

    Args:
        inside: releases of worlds with the clip, (worlds, d).
        outside: of as many worlds without it, (worlds, d).
        rng: draws the folds.

    Returns:
        Scores of the members (worlds,) and of the non-members (worlds,).

    Raises:
        FedsimError: if there are fewer than 11 worlds of a kind, or a number is not finite.
    """
    from sklearn.model_selection import KFold

    if inside.shape != outside.shape:
        raise ValueError(f"worlds have shapes {inside.shape} and {outside.shape}")
    if len(inside) - math.ceil(len(inside) / _WORLD_FOLDS) < MIN_WORLDS:
        raise FedsimError(
            f"worlds that score each other must be 11 of each kind, so that {MIN_WORLDS} remain"
            f" when one in {_WORLD_FOLDS} is held out, and there are {len(inside)}; compute more"
        )
    members, others = np.zeros(len(inside)), np.zeros(len(outside))
    folds = KFold(_WORLD_FOLDS, shuffle=True, random_state=random_state(rng))
    for known, held in folds.split(inside):
        both = np.concatenate([inside[held], outside[held]])
        scores = likelihood_ratio(both, inside[known], outside[known])
        members[held], others[held] = np.split(scores, 2)
    return members, others


def judge_membership(
    scores: np.ndarray,
    is_member: np.ndarray,
    clients: np.ndarray,
    rng: np.random.Generator,
    *,
    release: str,
    resamples: int = RESAMPLES,
) -> tuple[Finding, ...]:
    """Return how well scores separate members: AUC, and TPR at 1 % and at 0.1 % FPR.

    The threshold of an FPR, which must be exceeded, is the k-th largest score of n non-members, k =
    floor(FPR * (n + 1)). A further non-member exceeds it with probability k / (n + 1), and so does
    a member whose release reveals nothing. Reading the last point of the empirical ROC curve with
    that FPR instead would give noise a TPR of (k + 1) / (n + 1): twice too high with 1000
    non-members and 0.1 %.

    For a sample that is too small, a finding has the value None and a note with the reason. A TPR
    needs 1 / FPR non-members, so that one of them may be accused (100 for 1 %, 1000 for 0.1 %), and
    every figure ten members and ten non-members, of two clients.

    The interval of an AUC is a bootstrap over clients. That of a TPR is the wider of the bootstrap,
    which draws the threshold anew, and Clopper-Pearson, which accounts for events that did not
    occur in the sample. With 5 / FPR non-members it contains the true TPR in 95 % of cases; with
    fewer the threshold is too uncertain (88 % with 1 / FPR), and the note says so.

    Args:
        scores: larger for a likelier member, (n,).
        is_member: bool (n,).
        clients: the client of each score, (n,).
        rng: the only source of randomness.
        release: name of the release.
        resamples: number of resamples.

    Raises:
        FedsimError: if a score is not finite.
    """
    score = checked_vectors(np.reshape(scores, (-1, 1)), release)[:, 0]
    member = np.asarray(is_member, bool)
    names, client = np.unique(np.asarray(clients), return_inverse=True)
    if not len(score) == len(member) == len(client):
        raise ValueError(f"{len(score)} scores, {len(member)} members, {len(client)} clients")
    members, others = int(member.sum()), int((~member).sum())
    about = f"{members:,} members and {others:,} non-members of {len(names):,} clients"
    rates = {"AUC": None, **{f"TPR at {100 * rate:g} % FPR": rate for rate in FALSE_POSITIVE_RATES}}
    findings = []
    for figure, rate in rates.items():
        why = _too_few(members, others, len(names), rate)
        found: tuple[float | None, float | None, float | None] = (None, None, None)
        if not why:
            compute = partial(_auc, score, member, client)
            if rate is not None:
                compute = partial(_true_positives, score, member, client, rate)
            interval = speaker_interval(
                compute, len(names), rng, resamples=resamples, cases=len(score)
            )
            found = interval.value, interval.low, interval.high
            if rate is not None:
                low, high = clopper_pearson(interval.value * members, members)
                found = interval.value, min(interval.low, low), max(interval.high, high)
        findings.append(
            Finding(
                attack="membership",
                attribute="a tuning clip",
                release=release,
                figure=figure,
                value=found[0],
                low=found[1],
                high=found[2],
                chance=0.5 if rate is None else rate,
                n=len(score),
                note="; ".join(part for part in (about, why or _caution(others, rate)) if part),
            )
        )
    return tuple(findings)


def _too_few(members: int, others: int, clients: int, rate: float | None) -> str:
    """Return why the sample is too small for the AUC, or for the TPR at an FPR; else ""."""
    if min(members, others) < MIN_CLIPS or clients < 2:
        return f"{MIN_CLIPS} of each are needed, of two clients at least"
    if rate is not None and others < 1 / rate:
        return f"{1 / rate:,.0f} non-members are needed, of whom one may be accused"
    return ""


def _caution(others: int, rate: float | None) -> str:
    if rate is None or others >= _STABLE / rate:
        return ""
    return f"with fewer than {_STABLE / rate:,.0f} non-members the interval is too narrow"


def _auc(
    score: np.ndarray, member: np.ndarray, client: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the AUC under each row of client weights (b, C): (b,)."""
    of_clips = weights[:, client]
    return ratio(
        *concordance(score[member], score[~member], of_clips[:, member], of_clips[:, ~member])
    )


def _true_positives(
    score: np.ndarray, member: np.ndarray, client: np.ndarray, rate: float, weights: np.ndarray
) -> np.ndarray:
    """Return the share of members above the threshold of an FPR, see `judge_membership`: (b,)."""
    order = np.argsort(-score[~member], kind="stable")
    others = score[~member][order]
    accused = np.cumsum(weights[:, client[~member][order]], axis=1)
    total = accused[:, -1:]
    # A resample may have fewer non-members than the sample; at least one is accused.
    k = np.maximum(np.floor(rate * (total + 1) + 1e-9), 1)
    threshold = others[(accused >= k).argmax(axis=1)]
    own = weights[:, client[member]] * (total > 0)
    found = (own * (score[member] > threshold[:, None])).sum(axis=1)
    return ratio(found, own.sum(axis=1))


def _standardised(release: np.ndarray, *worlds: np.ndarray) -> list[np.ndarray]:
    """Return the release and the worlds, standardised by mean and deviation over all worlds."""
    from sklearn.preprocessing import StandardScaler

    checked = [checked_vectors(part, "of a world") for part in (release, *worlds)]
    smallest = min(len(part) for part in checked[1:])
    if smallest < MIN_WORLDS:
        raise FedsimError(
            f"a likelihood ratio needs {MIN_WORLDS} worlds of each kind, and there are {smallest};"
            " compute more"
        )
    scaler = StandardScaler().fit(np.concatenate(checked[1:]))
    return [scaler.transform(part) for part in checked]
