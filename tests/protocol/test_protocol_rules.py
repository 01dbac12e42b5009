"""Every rule of answers: what keeps it is accepted, what breaks it is not, and is named."""

from __future__ import annotations

from itertools import chain

import pytest
from answers import BREAKS, VALID
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.protocol.rules import RULES, broken_rule

EACH = [(kind, rule) for kind, rules in RULES.items() for rule in rules]
often = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)


def named(item) -> str:
    kind, rule = item
    return f"{kind.__name__}-{rule.check.__name__}"


@pytest.mark.parametrize("kind", RULES)
@settings(often, max_examples=examples(200))
@given(data=st.data())
def test_what_keeps_every_rule_is_accepted(kind, data):
    exchange = data.draw(VALID[kind])
    assert broken_rule(exchange.request, exchange.answer, exchange.known) == ""


@pytest.mark.parametrize("item", EACH, ids=named)
@often
@given(data=st.data())
def test_what_breaks_a_rule_is_refused(item, data):
    kind, rule = item
    valid = data.draw(VALID[kind])
    exchange = BREAKS[rule.check.__name__](data.draw, valid)
    assume(exchange is not None and repr(exchange.answer) != repr(valid.answer))
    problem = broken_rule(exchange.request, exchange.answer, exchange.known)
    assert problem
    assert len(problem) < 200
    assert "\n" not in problem


def test_every_field_has_a_rule():
    """But for the key and the payload, which the server checks against what it alone knows."""
    for kind, rules in RULES.items():
        ruled = set(chain.from_iterable(rule.fields for rule in rules))
        fields = set(kind.__dataclass_fields__)
        assert fields - ruled == {"client", "payload"} & fields
        assert all(rule.check.__doc__ for rule in rules)
