from fedsim.base.units import MB, count_words, size_words, time_words


def test_times_in_words():
    words = {None: "-", 0.0: "0 s", 0.0123: "0.012 s", 0.949: "0.95 s", 0.99: "1.0 s"}
    words |= {59.94: "59.9 s", 59.96: "1.0 min", 90.0: "1.5 min", 3597.1: "1.0 h"}
    words |= {36e5: "1,000.0 h"}
    assert {seconds: time_words(seconds) for seconds in words} == words


def test_sizes_in_words():
    words = {MB // 4: "0.2 MB", 12 * MB: "12.0 MB", 99 * MB: "99.0 MB", 460 * MB: "460 MB"}
    words |= {12_345 * MB: "12.1 GB"}
    assert {n: size_words(n) for n in words} == words


def test_counts_in_words():
    words = [count_words(n, "client") for n in (0, 1, 2, 1000)]
    assert words == ["0 clients", "1 client", "2 clients", "1,000 clients"]
