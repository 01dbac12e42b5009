"""Opening a scenario's corpus: which clients take part, and which clips each has.

Opening reads metadata only; audio is read, or synthesized, when a client processes it.
"""

from __future__ import annotations

from functools import partial

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import READERS, CorpusSettings
from fedsim.scenario.scores import BASIC
from fedsim.speech.clips import ClientData, Clients
from fedsim.speech.normalizers import normalizer
from fedsim.speech.wordless import scored


def open_clients(
    corpus: CorpusSettings, clients: ClientSettings, seed: int, text_normalizer: str = BASIC
) -> Clients:
    """Return the clients of a scenario by key, in sorted order.

    A client with too few clips is among them: `require_clips` raises when it takes part.

    Args:
        corpus: the corpus, and what it is grouped by.
        clients: `select` (keys, or None for all), `min_clips` and `limit` are read.
        seed: of the scenario, for the split into tuning and test clips.
        text_normalizer: of the scenario; test clips whose reference is empty once normalized are
            not scored.

    Raises:
        FedsimError: if the corpus cannot be opened or grouped, if it lacks a selected client, or if
            no client has `min_clips`.
    """
    found = READERS[corpus.kind].open(corpus, seed)
    if found.clips is None:  # synthetic speakers say words
        found = found.changed(partial(scored, normalize=normalizer(text_normalizer)))
    keys = list(found)
    if clients.select is not None:
        for key in clients.select:
            if key not in found:
                raise FedsimError(
                    f"clients.select names {key!r}, but the corpus has no such {corpus.group_by}: "
                    f"{nearest(key, found)}"
                )
        keys = sorted(clients.select)
    if clients.min_clips:
        same = None if found.clips is None else sum(found.clips)
        keys = [
            k for k in keys if (_clips(found[k]) if same is None else same) >= clients.min_clips
        ]
        if not keys:
            raise FedsimError(
                f"no {corpus.group_by} has the {clients.min_clips} clips of clients.min_clips, of "
                f"which corpus.tuning_clips and corpus.test_clips take "
                f"{corpus.tuning_clips + corpus.test_clips} at most; lower clients.min_clips"
            )
    return found.restrict(keys[: clients.limit])


def _clips(client: ClientData) -> int:
    return len(client.tuning) + len(client.test)
