import pytest

from fedsim.base.units import MB, size_words, time_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((None, "-"), (0.0, "0 s"), (0.0123, "0.012 s"), (0.949, "0.95 s"), (0.99, "1.0 s")),
        *((59.94, "59.9 s"), (59.96, "1.0 min"), (3597.1, "1.0 h"), (90.0, "1.5 min")),
        *((36e5, "1,000.0 h"),),
    ],
)
def test_times_in_words(seconds, words):
    assert time_words(seconds) == words


def test_sizes_in_words():
    assert [size_words(n) for n in (MB // 4, 12 * MB, 99 * MB, 12_345 * MB)] == [
        *("0.2 MB", "12.0 MB", "99.0 MB", "12.1 GB"),
    ]
