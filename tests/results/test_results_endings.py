"""How clients ended: once each, whatever the ledger says of them."""

from fedsim.results.endings import endings, sentences
from fedsim.results.records import Failure

FAILURES = [
    Failure("bob", "plan", "the model of 'eve' is missing."),
    Failure("eve", "evaluate", "no answer.", "dropped"),
    Failure("eve", "plan", "the model of 'joe' is missing."),
    Failure("joe", "personalize", "no room."),
    Failure("kim", "sense", "unreadable.", "quarantined"),
]


def test_every_client_ends_in_one_way():
    ended = endings(["ann", "bob"], FAILURES)
    assert ended == {
        **{"ann": "finished", "bob": "in part", "eve": "dropped", "joe": "failed"},
        "kim": "quarantined",
    }
    assert endings(["bob", "ann"], list(reversed(FAILURES))) == ended


def test_counts_in_words():
    assert sentences(endings(["ann", "bob"], FAILURES).values()) == [
        *("1 client failed", "1 client did not answer", "1 client was put in quarantine"),
        "1 client lost some results",
    ]
    assert sentences(["quarantined"] * 2_000) == ["2,000 clients were put in quarantine"]
    assert sentences(["finished"]) == []
