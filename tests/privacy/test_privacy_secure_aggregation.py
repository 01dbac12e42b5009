"""Secure aggregation: the sum is exact, the rest is hidden, and what protects it is checked."""

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import examples
from scipy.stats import chisquare, pearsonr

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.secure_aggregation import ciphers, device, server, wire
from fedsim.privacy.secure_aggregation.codes import STEPS, decode, encode
from fedsim.protocol.codec import from_record, to_record

STAGES = ("keys", "shares", "masked", "unmask")


def seeded(seed=0):
    """Secrets from a seed, so that a statistical test fails always or never."""
    return partial(np.random.default_rng(seed).bytes, ciphers.SECRET_BYTES)


class Play:
    """One group from beginning to end; `gone` are the places that drop out at each stage.

    `view` is all that the server ever receives.
    """

    def __init__(self, codes, threshold, gone=None, draw=None):
        self.codes, self.view = dict(enumerate(codes, 1)), []
        self.threshold, self.gone = threshold, gone or {}
        self.draw = draw or seeded()

    def there(self, stage, places):
        left = {p for s in STAGES[: STAGES.index(stage) + 1] for p in self.gone.get(s, ())}
        return [p for p in places if p not in left]

    def carry(self, message):
        """Through Flower's records, as on a real way."""
        return from_record(type(message), to_record(message), "somebody")

    def ask(self, stage, posts, step):
        replies = {}
        for place in self.there(stage, posts):
            self.members[place], reply = step(self.carry(self.members[place]), posts[place])
            replies[place] = self.carry(reply)
            self.view.append(reply)
        return replies

    def run(self):
        self.members, self.secrets, keys = {}, {}, {}
        for place in self.there("keys", self.codes):
            member, keys[place] = device.join(place, self.draw)
            self.members[place], self.secrets[place] = member, (member.mask_secret, member.seed)
            self.view.append(keys[place])
        self.group = server.roster(keys.values(), self.threshold)
        sent = self.ask("shares", dict.fromkeys(keys, self.carry(self.group)), device.share)
        post = server.route(sent, self.group)
        self.masked = {}
        for place in self.there("masked", post):
            member, envelopes = self.members[place], self.carry(post[place])
            self.members[place], self.masked[place] = device.hide(
                member, envelopes, self.codes[place]
            )
            self.view.append(self.masked[place])
        alive = server.survivors(self.masked, self.group)
        self.shares = self.ask("unmask", dict.fromkeys(alive.places, alive), device.unmask)
        return server.total(self.group, sent, self.masked, self.shares)


def summaries(members, length=23, seed=1):
    codes = np.random.default_rng(seed).integers(0, STEPS + 1, (members, length))
    return codes.astype(np.uint32)


def test_the_sum_is_exact():
    for members, threshold in ((3, 3), (4, 3), (9, 5), (9, 9)):
        codes = summaries(members)
        np.testing.assert_array_equal(Play(codes, threshold).run(), codes.sum(axis=0))


def drop_outs(places=range(1, 8), remaining=4):
    """Up to as many places as may drop out of seven, each at a stage."""
    chosen = st.lists(
        st.sampled_from(places), unique=True, min_size=1, max_size=len(places) - remaining
    )
    return chosen.flatmap(
        lambda p: st.fixed_dictionaries(dict.fromkeys(p, st.sampled_from(STAGES)))
    )


@settings(max_examples=examples(25), deadline=None, derandomize=True, database=None)
@given(drop_outs())
@example({7: "masked", 2: "keys", 1: "shares"})
@example({2: "masked", 1: "unmask", 7: "unmask"})
def test_members_may_drop_out_at_any_stage_down_to_the_threshold(stage_of):
    codes = summaries(7)
    gone = {stage: [p for p, s in stage_of.items() if s == stage] for stage in STAGES}
    total = Play(codes, 4, gone).run()
    summed = [p for p in range(1, 8) if stage_of.get(p, "unmask") == "unmask"]
    np.testing.assert_array_equal(total, codes[np.array(summed) - 1].sum(axis=0))


def test_below_the_threshold_nothing_is_learned():
    for stage in STAGES:
        play = Play(summaries(7), 4, {stage: [1, 3, 5, 7]})
        with pytest.raises(FedsimError, match=r"3 members .* threshold is 4.*ask a larger group"):
            play.run()


def test_the_sum_is_the_same_whatever_the_secrets():
    plays = [Play(summaries(4), 3, draw=d) for d in (seeded(), seeded(), ciphers.new_secret)]
    totals = [play.run() for play in plays]
    for total in totals[1:]:
        np.testing.assert_array_equal(total, totals[0])
    first, same, other = (play.masked for play in plays)
    assert first == same
    assert all(first[place] != other[place] for place in first)


def test_secrets_come_from_the_operating_system():
    members = [device.join(1)[0] for _ in range(3)]
    drawn = {s for m in members for s in (m.seal_secret, m.mask_secret, m.seed)}
    assert len(drawn) == 9
    assert {len(secret) for secret in drawn} == {16}


def uniform(words):
    """p-value of all bytes being equally likely."""
    counts = np.bincount(np.ascontiguousarray(words, "<u4").view(np.uint8), minlength=256)
    return chisquare(counts).pvalue


def test_each_masked_vector_alone_looks_uniform():
    # All codes are 7, which without masks could not be less uniform.
    codes = np.full((5, 20_000), 7, np.uint32)
    play = Play(codes, 3)
    total = play.run()
    vectors = {p: np.frombuffer(m.codes, "<u4") for p, m in play.masked.items()}
    assert uniform(codes[0]) == 0
    for vector in vectors.values():
        assert uniform(vector) > 1e-3
        assert not np.isin(codes[0][:50], vector[:50]).any()
    for p, q in ((1, 2), (2, 5)):
        assert pearsonr(vectors[p].astype(float), vectors[q].astype(float)).pvalue > 1e-3
        assert uniform(vectors[p] + vectors[q]) > 1e-3  # a pair is hidden by the others
    np.testing.assert_array_equal(total, np.full(20_000, 35))


def test_what_is_left_of_one_member_still_looks_uniform():
    codes = np.full((5, 20_000), 7, np.uint32)
    play = Play(codes, 3, {"masked": [4]})
    play.run()
    public = dict(zip(play.group.places, play.group.mask, strict=True))

    def pairs(place, others):
        """The sum of the masks that a member shares with others."""
        keys = {q: ciphers.shared_key(play.secrets[place][0], public[q], "mask") for q in others}
        masks = [
            ciphers.mask(keys[q], 20_000) * np.uint32(1 if place < q else -1 % 2**32)
            for q in others
        ]
        return np.sum(masks, axis=0, dtype=np.uint32)

    for place in (1, 2, 3, 5):
        others = {1, 2, 3, 5} - {place}
        vector = np.frombuffer(play.masked[place].codes, "<u4")
        own = ciphers.mask(ciphers.seed_key(play.secrets[place][1]), 20_000)
        # At the end the server knows every survivor's own mask, and the masks of who fell out.
        assert uniform(vector - own - pairs(place, {4})) > 1e-3
        # Had it called this one fallen out instead, it would know all its masks but the own.
        assert uniform(vector - pairs(place, others | {4})) > 1e-3
        # With both, which no member sends, it would know all.
        assert (vector - own - pairs(place, others | {4}) == 7).all()


def test_nobody_sends_both_secrets_of_a_member_and_the_post_is_sealed():
    play = Play(summaries(5), 3, {"masked": [2]})
    play.run()
    for message in play.view:
        if isinstance(message, wire.Shares):
            assert len(set(message.places)) == len(message.places)
            assert {len(share) for share in message.shares} == {16}
    sealed = [e for m in play.view if isinstance(m, wire.Envelopes) for e in m.sealed]
    opened = [s for m in play.view if isinstance(m, wire.Shares) for s in m.shares]
    assert not [share for share in opened if any(share in envelope for envelope in sealed)]


def test_secrets_are_not_shown_and_are_forgotten():
    member, _ = device.join(3)
    assert repr(member.seed) not in repr(member)
    play = Play(summaries(3), 3)
    play.run()
    for place, member in play.members.items():
        assert member == device.Member(place, "done")


def test_masks_are_the_published_cipher():
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter zero.
    block = ciphers.mask(bytes(32), 16).tobytes()
    assert block.hex().startswith(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    )


def test_shares_below_the_threshold_say_nothing():
    secret = bytes(range(16))
    shares = list(enumerate(ciphers.split(secret, 4, 7), 1))
    assert ciphers.combine(shares[2:6]) == secret
    assert ciphers.combine(shares[2:5]) != secret


def group(members, threshold):
    found = [device.join(place) for place in range(1, members + 1)]
    return [m for m, _ in found], server.roster([k for _, k in found], threshold)


def test_a_device_takes_part_in_no_group_that_would_not_protect_it():
    for members, threshold in ((4, 2), (5, 2), (3, 2), (3, 4), (7, 3), (6, 3), (2, 2)):
        keys = [device.join(place) for place in range(1, members + 1)]
        roster = wire.Roster(
            threshold,
            tuple(k.place for _, k in keys),
            tuple(k.seal for _, k in keys),
            tuple(k.mask for _, k in keys),
        )
        with pytest.raises(FedsimError, match=rf"member 1 .* refuses a group of {members} "):
            device.share(keys[0][0], roster)


def test_the_minimum_threshold_is_the_one_that_devices_agree_to():
    for members in range(3, 9):
        minimum = server.min_threshold(members)
        found, roster = group(members, minimum)
        device.share(found[0], roster)
        with pytest.raises(FedsimError, match="refuses a group"):
            device.share(found[0], replace(roster, threshold=minimum - 1))


def test_a_device_knows_its_own_keys():
    members, roster = group(4, 3)
    other = device.join(2)[1]
    swapped = replace(roster, mask=(*roster.mask[:1], other.mask, *roster.mask[2:]))
    device.share(members[0], swapped)  # of another's it cannot know
    for bad in (swapped, replace(roster, seal=(roster.seal[0],) * 4)):
        with pytest.raises(FedsimError, match="without this member's own keys"):
            device.share(members[1], bad)


def to_masked(members, threshold):
    found, roster = group(members, threshold)
    found, sent = zip(*(device.share(m, roster) for m in found), strict=True)
    post = server.route(dict(enumerate(sent, 1)), roster)
    return list(found), roster, post


def test_a_device_takes_no_post_that_is_not_its_own():
    found, _, post = to_masked(4, 3)
    codes = summaries(1)[0]
    changed = bytearray(post[1].sealed[0])
    changed[-1] ^= 1
    for sealed in (
        (bytes(changed), *post[1].sealed[1:]),
        (post[2].sealed[0], *post[1].sealed[1:]),  # to another
        (post[1].sealed[1], post[1].sealed[0], post[1].sealed[2]),  # from another
        (b"", *post[1].sealed[1:]),
    ):
        with pytest.raises(FedsimError, match=r"envelope from member [23] to member 1 was changed"):
            device.hide(found[0], replace(post[1], sealed=sealed), codes)
    for places in ((2, 2, 3), (2, 3, 9), (1, 2, 3)):
        with pytest.raises(FedsimError, match="refuses shares of 3 others"):
            device.hide(found[0], replace(post[1], places=places), codes)
    few = wire.Envelopes(post[1].places[:1], post[1].sealed[:1])
    with pytest.raises(FedsimError, match="shares of 1 others; it needs 2 or more"):
        device.hide(found[0], few, codes)


def test_a_device_unmasks_no_sum_that_is_too_small_or_not_its_own():
    found, _, post = to_masked(4, 3)
    member, _ = device.hide(found[0], post[1], summaries(1)[0])
    for survivors in ((1, 2), (2, 3, 4), (1, 2, 3, 9), (1, 1, 2, 3), ()):
        with pytest.raises(FedsimError, match=r"to unmask a sum of .* it must be of 3 or more"):
            device.unmask(member, wire.Survivors(survivors))


def test_a_device_answers_once_and_in_order():
    members, roster = group(4, 3)
    codes = summaries(1)[0]
    with pytest.raises(FedsimError, match="refuses the step 'mask' when 'share' is expected"):
        device.hide(members[0], wire.Envelopes((), ()), codes)
    member, _ = device.share(members[0], roster)
    with pytest.raises(FedsimError, match="'share' when 'mask' is expected"):
        device.share(member, roster)
    found, _, post = to_masked(4, 3)
    member, _ = device.hide(found[0], post[1], codes)
    with pytest.raises(FedsimError, match="'mask' when 'unmask' is expected"):
        device.hide(member, post[1], codes)
    member, _ = device.unmask(member, wire.Survivors((1, 2, 3)))
    with pytest.raises(
        FedsimError, match="'unmask' when 'done' is expected"
    ):  # with 4 dead, then not
        device.unmask(member, wire.Survivors((1, 2, 3, 4)))


def test_members_that_break_the_protocol_are_named():
    found, roster = group(4, 3)
    found, sent = zip(*(device.share(m, roster) for m in found), strict=True)
    sent = dict(enumerate(sent, 1))
    for places in ((1, 3), (1, 3, 9)):
        wrong = wire.Envelopes(places, sent[2].sealed[: len(places)])
        with pytest.raises(FedsimError, match=r"member 2 of a group sent .*; leave it out"):
            server.route(sent | {2: wrong}, roster)
    play = Play(summaries(4), 3, {"masked": [4]})
    play.run()
    total = partial(server.total, play.group, [1, 2, 3, 4])
    shares = play.shares
    few = replace(shares[2], places=shares[2].places[:-1], shares=shares[2].shares[:-1])
    with pytest.raises(FedsimError, match="member 2 of a group sent 3 shares for 3 members"):
        total(play.masked, shares | {2: few})
    short = play.masked | {2: wire.Masked(play.masked[2].codes[:-4])}
    with pytest.raises(FedsimError, match="and not one length; ask its members again"):
        total(short, shares)
    wrong = replace(shares[1], shares=(bytes(16),) * 4)
    with pytest.raises(
        FedsimError, match=r"shares of member 4, .* do not give .*; start a new group"
    ):
        total(play.masked, shares | {1: wrong})


CHANGES = [
    lambda places, parts: (places, parts[:-1]),
    lambda places, parts: (places, (*parts, parts[0])),
    lambda places, parts: ((*places, places[0]), (*parts, parts[0])),
    lambda places, parts: ((places[0], *places[:-1]), parts),
    lambda places, parts: ((-1, *places[1:]), parts),
    lambda places, parts: (places, (b"", *parts[1:])),
    lambda places, parts: (places, (parts[0] + b"x", *parts[1:])),
    lambda places, parts: ((), ()),
]
"""Of the places and the parts that a member sends, into what no member sends."""


def test_wrong_parts_are_found_and_right_ones_pass():
    """Nothing that a member sends makes the server fail without an error that names it."""
    found, roster = group(4, 3)
    found, sent = zip(*(device.share(m, roster) for m in found), strict=True)
    sent = dict(enumerate(sent, 1))
    assert all(server.problem_in_envelopes(e, place, roster) == "" for place, e in sent.items())
    for change in CHANGES:
        bad = wire.Envelopes(*change(sent[2].places, sent[2].sealed))
        assert server.problem_in_envelopes(bad, 2, roster) != ""
        with pytest.raises(FedsimError, match="member 2 of a group sent"):
            server.route(sent | {2: bad}, roster)
    play = Play(summaries(4), 3, {"masked": [4]})
    play.run()
    assert all(
        server.problem_in_shares(shares, [1, 2, 3, 4]) == "" for shares in play.shares.values()
    )
    for change in CHANGES:
        bad = wire.Shares(*change(play.shares[2].places, play.shares[2].shares))
        assert server.problem_in_shares(bad, [1, 2, 3, 4]) != ""
        with pytest.raises(FedsimError, match="member 2 of a group sent"):
            server.total(play.group, [1, 2, 3, 4], play.masked, play.shares | {2: bad})


def test_wrong_keys_are_found_and_right_ones_pass():
    _, keys = device.join(3)
    assert server.problem_in_keys(keys, 3) == ""
    assert "member 3, and it is member 2" in server.problem_in_keys(keys, 2)
    assert "31 bytes" in server.problem_in_keys(replace(keys, mask=keys.mask[1:]), 3)
    assert "twice" in server.problem_in_keys(replace(keys, mask=keys.seal), 3)
    # A point of small order: each other member would refuse to go on.
    assert "not an X25519 key" in server.problem_in_keys(replace(keys, seal=bytes(32)), 3)


def test_masks_that_did_not_come_off_are_noticed():
    play = Play(summaries(4), 3)
    play.run()
    wrong = replace(play.shares[1], shares=(bytes(16),) * 4)
    total = server.total(play.group, [1, 2, 3, 4], play.masked, play.shares | {1: wrong})
    with pytest.raises(FedsimError, match="the masks were not removed; start a new group"):
        decode(total, 4, Bounds(np.full(23, 1.0), np.full(23, 2.0)))


def test_the_mean_of_a_group_is_geometric():
    rng = np.random.default_rng(5)
    bounds = Bounds(np.exp(rng.normal(0, 4, 40)), np.exp(rng.normal(9, 1, 40)))
    values = bounds.low * (bounds.high / bounds.low) ** rng.uniform(-0.1, 1.1, (6, 40))
    codes = np.stack([encode(row, bounds) for row in values])
    mean = decode(Play(codes, 4).run(), 6, bounds)
    clipped = np.clip(values, bounds.low, bounds.high)
    np.testing.assert_allclose(mean, np.exp(np.log(clipped).mean(axis=0)), rtol=1e-4)


def test_the_largest_group_does_not_overflow():
    from fedsim.privacy.secure_aggregation.codes import MAX_MEMBERS

    bounds = Bounds(np.full(2, 1.0), np.full(2, 8.0))
    code = encode(np.array([9.0, 0.5]), bounds)
    assert code.tolist() == [STEPS, 0]
    assert MAX_MEMBERS * STEPS < 2**32
    mean = decode((code.astype(np.uint64) * MAX_MEMBERS).astype(np.uint32), MAX_MEMBERS, bounds)
    np.testing.assert_allclose(mean, [8.0, 1.0])


def test_a_public_key_that_is_none():
    with pytest.raises(FedsimError, match="public key of 5 bytes"):
        ciphers.shared_key(bytes(16), b"hello", "mask")
    with pytest.raises(FedsimError, match="is not an X25519 key"):  # a point of small order
        ciphers.shared_key(bytes(16), bytes(32), "mask")


def test_messages_have_no_field_for_a_summary():
    allowed = {"place", "seal", "mask", "threshold", "places", "sealed", "codes", "shares"}
    kinds = (wire.Keys, wire.Roster, wire.Envelopes, wire.Masked, wire.Survivors, wire.Shares)
    assert {f.name for kind in kinds for f in fields(kind)} == allowed
