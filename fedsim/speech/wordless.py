"""References without a word, which are counted apart from the clips that are scored."""

from __future__ import annotations

from dataclasses import replace

from fedsim.base.units import count_words
from fedsim.speech.clips import ClientData, Clients
from fedsim.speech.normalizers import Normalize, has_word

_MAX_NAMED = 5


def scored(client: ClientData, normalize: Normalize) -> ClientData:
    """Return a client whose test clips are those whose reference has a word once normalized.

    The others are not scored, whatever the hypothesis: `ClientData.wordless` has their keys.
    """
    silent = tuple(u.key for u in client.test if u.text and not has_word(u.text, normalize))
    if not silent:
        return client
    test = tuple(u for u in client.test if not u.text or has_word(u.text, normalize))
    return replace(client, test=test, wordless=(*client.wordless, *silent))


def wordless_line(clients: Clients) -> str:
    """Return how many references of which clients have no word once normalized; "" for none.

    Such a clip has no word error rate: it is not scored, as no hypothesis could be right.
    """
    if clients.clips is not None:  # synthetic speakers say words
        return ""
    counts = {c.key: len(c.wordless) for c in clients.values() if c.wordless}
    if not counts:
        return ""
    named = ", ".join(f"{key} ({n})" for key, n in list(counts.items())[:_MAX_NAMED])
    more = f" and {len(counts) - _MAX_NAMED:,} more" if len(counts) > _MAX_NAMED else ""
    return (
        f"not scored: {count_words(sum(counts.values()), 'reference')} without a word once"
        f" normalized, of {named}{more}"
    )
