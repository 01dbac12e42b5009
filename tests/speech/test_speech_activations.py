"""Bytes of activations against shapes worked out by hand."""

import pytest

from fedsim.speech.activations import activation_bytes
from fedsim.speech.models import load_model


def test_the_widest_layer_of_the_bundled_recognizer():
    model = load_model("bundled:ctc")
    # Strides 160 and 2: of 3 s, 48,000 samples, 298 frames of 256 channels behind the first
    # convolution, which is the widest, and 148 behind the second, of 192 + 768 in a feed-forward.
    first, feed = 4 * (48_000 + 298 * 256), 4 * 148 * (192 + 768)
    assert activation_bytes(model, 3.0) == max(first, feed)


def test_they_grow_with_the_seconds_and_not_behind_a_window(speech):
    ctc, whisper = speech("ctc-group"), speech("whisper")
    assert activation_bytes(ctc, 2.0) == pytest.approx(2 * activation_bytes(ctc, 1.0), rel=0.05)
    assert activation_bytes(whisper, 0.5) == activation_bytes(whisper, 1.0)
