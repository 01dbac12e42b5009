"""Whether a client can take part: what its clips must have."""

from __future__ import annotations

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import ClientData
from fedsim.speech.duplicates import require_distinct


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Check that a client can take part; the content of its clips may be read.

    Raises `FedsimError` as `check_metadata` and `require_distinct` do.
    """
    check_metadata(client, corpus)
    if corpus.duplicates == "refuse":
        require_distinct(client)


def check_metadata(client: ClientData, corpus: CorpusSettings) -> None:
    """Check that a client can take part, by the metadata of its clips.

    Raises `FedsimError` if it has no tuning clips, no test clips, or a test clip without text.
    """
    total = len(client.tuning) + len(client.test)
    if client.wordless and not client.test:
        raise FedsimError(
            f"client {client.key!r}: no reference of its {len(client.wordless)} test clips has a"
            f" word once normalized, the first is {client.wordless[0]}; correct the texts or leave"
            f" the client out"
        )
    if not client.tuning or not client.test:
        which = "tuning" if not client.tuning else "test"
        raise FedsimError(
            f"client {client.key!r} has no {which} clips: the corpus holds {total} of its clips "
            f"and corpus.test_clips takes {corpus.test_clips} first; lower it or leave the client "
            f"out"
        )
    without_text = next((u for u in client.test if not u.text), None)
    if without_text is not None:
        raise FedsimError(
            f"client {client.key!r}: test clip {without_text.key} has no text to compare with; "
            f"fill in its text or remove the clip"
        )
