"""Recognize recordings with a Whisper that `fedsim export` wrote: no torch, no fedsim.

pip install 'onnx-asr[cpu]'
python recognize.py anna-onnx it clip.wav ...
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Print the transcript of each recording."""
    if len(sys.argv) < 4:
        sys.exit("usage: python recognize.py FOLDER LANGUAGE CLIP.wav ...")
    import onnx_asr

    folder, language, *clips = sys.argv[1:]
    model = onnx_asr.load_model("whisper", Path(folder))
    for clip in clips:
        print(clip, model.recognize(clip, language=language), sep="\t")


if __name__ == "__main__":
    main()
