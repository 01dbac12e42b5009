"""The reason that a device sends for a failure: without paths, file names or words of its user.

The full text stays on the device, in the log `fedsim.device` at level INFO.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from traceback import extract_tb

from fedsim import errors
from fedsim.errors import FedsimError
from fedsim.speech.clips import ClientData

_LOG = logging.getLogger("fedsim.device")
_START = r"(?:[A-Za-z]:[/\\]|~\w*[/\\]|\.{0,2}[/\\])(?=\S)"
_BEGIN = rf"(?<![\w.]){_START}"
# Folders have names such as `calls, old (2)`; but after a comma another path may begin.
_IN = rf"(?:[^\n:'\",;(]|[,;(](?!\s*{_START}))"
_EXTENSION = r"(?:\.[A-Za-z]\w{0,7})+(?![\w/\\])"
_PATH = re.compile(
    rf"(['\"]){_BEGIN}[^'\"\n]*\1"  # in quotes, to their end
    rf"|(['\"])[^'\"\n]*[/\\][^'\"\n]*{_EXTENSION}\2"
    # Without quotes to a file's extension, across spaces; without that across the last slash.
    rf"|{_BEGIN}(?:{_IN}*?{_EXTENSION}|(?:{_IN}*[/\\])?[^\s:;,'\"()]+)"
    rf"|[^\s:;,'\"()/\\]+[/\\]{_IN}*?{_EXTENSION}"
)
"""A path, a relative one only with an extension: it matches too much rather than too little."""
_ABSOLUTE = re.compile(_BEGIN)
_END = re.compile(r"(?=[\s:;,.'\"()]|\Z)")
_MAX_PATH = 4_096
_FILE = "a local file"
_MAX_REASON = 1_000
"""Characters of a reason."""
_PACKAGES = (Path(__file__).parent, Path(errors.__file__).parent)


def redacted_reason(
    error: Exception, client: str, message_type: str, data: ClientData | None
) -> str:
    """Return the reason for a failure as it may leave the device.

    For an error of fedsim's own it is the text, with clips as numbers and without paths. The text
    of any other exception may hold anything: then, and whenever the client's clips are unknown, the
    reason is the exception's type and the line of fedsim's code that it came through.

    Args:
        error: what was raised.
        client: key of the client, which the server knows; empty if the device does not.
        message_type: of the request.
        data: the client's clips, None where they are unknown.
    """
    _LOG.info("client %s: %s", client, error, exc_info=error)
    if isinstance(error, FedsimError) and data is not None:
        text = _PATH.sub(_FILE, _without_existing(_without_clips(str(error), data)))
        if client and repr(client) not in text:
            text = f"client {client!r}: {text}"
        return text[:_MAX_REASON]
    what = type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # the system's text, without a file name
        what += f" ({error.strerror})"
    return f"client {client!r} failed in {message_type}: {what} in {_place(error)}"


def _without_existing(text: str) -> str:
    """Return the text without paths that exist on this device, whatever characters they have.

    Where a path ends cannot be seen: `calls, old (2) is empty` may be a folder or a sentence.
    """
    found, at = [], 0
    for start in _ABSOLUTE.finditer(text):
        if start.start() < at:
            continue  # inside the path before
        ends = (end.start() for end in _END.finditer(text, start.end(), start.end() + _MAX_PATH))
        for end in sorted(ends, reverse=True):
            beyond = text[end : end + 1] in ("/", "\\")  # a file in it is missing: see `_PATH`
            if not beyond and os.path.lexists(os.path.expanduser(text[start.start() : end])):
                found += [text[at : start.start()], _FILE]
                at = end
                break
    return "".join([*found, text[at:]])


def _without_clips(text: str, data: ClientData) -> str:
    """Return the text with a clip's number in place of its file, its key and its words."""
    for role, clips in (("tuning", data.tuning), ("test", data.test)):
        for number, clip in enumerate(clips, start=1):
            name = f"{role} clip {number}"
            path = str(clip.source) if isinstance(clip.source, Path) else clip.key
            for private in (path, clip.key):
                for words in (f"audio file {private}", f"{role} clip {private}", private):
                    text = text.replace(words, name)
            if clip.text and repr(clip.text) in text:
                text = text.replace(repr(clip.text), f"the text of {name}")
    return text


def _place(error: Exception) -> str:
    """Return the last line of fedsim's code that an exception came through.

    An example is `fedsim_clients/device.py:71`.
    """
    for frame in reversed(extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        for package in _PACKAGES:
            if file.is_relative_to(package):
                return f"{file.relative_to(package.parent).as_posix()}:{frame.lineno}"
    return "code outside fedsim"
