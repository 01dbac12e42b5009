"""Utterances of a recorded corpus as clients: one per speaker, gender or language, each split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsim.base.seeds import client_rng
from fedsim.base.text import composed, has_control
from fedsim.errors import FedsimError, nearest, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import FIELDS, ClientData, Clients, Found, Utterance, utterance_seconds
from fedsim.speech.tidy import tidied

MAX_KEY = 200
"""Characters of a client's key."""


def grouped(utterances: list[Utterance], corpus: CorpusSettings, seed: int) -> Clients:
    """Return one client per value of `corpus.group_by`, keys in Unicode's composed form.

    Raises `FedsimError` if no utterance has one, for a key that cannot be a name, and as `tidied`
    does.
    """
    utterances, notes = tidied(utterances, corpus)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        value = getattr(utterance, corpus.group_by)
        if value is not None:
            groups[composed(value)].append(utterance)
    if not groups:
        listed = "give corpus.speakers, " if corpus.group_by == "gender" else ""
        raise FedsimError(
            f"corpus {corpus.path} gives no {corpus.group_by} for any clip; add a column "
            f"{corpus.group_by!r}, map one under corpus.columns, {listed}or choose another "
            f"corpus.group_by"
        )
    for key in groups:
        _check_key(key, corpus, groups[key][0])
    clients = Clients(sorted(groups), lambda key: _split(corpus, key, groups[key], seed))
    clients.found = Found(corpus.kind, utterances, notes)
    return clients


def _check_key(key: str, corpus: CorpusSettings, first: Utterance) -> None:
    """Raise `FedsimError` for a key that is text or noise rather than a name."""
    if len(key) > MAX_KEY:
        what = f"has {len(key):,} characters, more than {MAX_KEY}"
    elif has_control(key):
        what = "holds a control character"
    else:
        return
    raise FedsimError(
        f"corpus {corpus.path}: clip {first.key}: the {corpus.group_by} {quoted(key)} {what};"
        f" correct it"
    )


def _split(corpus: CorpusSettings, key: str, utterances: list[Utterance], seed: int) -> ClientData:
    if corpus.max_seconds is not None:
        utterances = [u for u in utterances if utterance_seconds(u) <= corpus.max_seconds]
    order = client_rng(seed, key, "split").permutation(len(utterances))
    test = sorted(order[: corpus.test_clips])
    tuning = sorted(order[corpus.test_clips : corpus.test_clips + corpus.tuning_clips])
    spoken = {u.language for u in utterances}
    return ClientData(
        key,
        tuple(replace(utterances[i], text=None) for i in tuning),
        tuple(utterances[i] for i in test),
        spoken.pop() if len(spoken) == 1 else None,
    )


def named_columns(
    corpus: CorpusSettings, present: Sequence[str], renamed: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return our name -> column, for every column that is present.

    `renamed` maps our names to those of the layout. Raises `FedsimError` if the audio column, or
    one mapped under corpus.columns, is missing.
    """
    names = {}
    for field in FIELDS:
        column = corpus.columns.get(field, renamed.get(field, field))
        if column in present:
            names[field] = column
        elif field in corpus.columns or field == "audio":
            raise FedsimError(
                f"{where} has no column {column!r} for {field}: {nearest(column, present)}; map it "
                f"under corpus.columns"
            )
    return names
