"""Secure aggregation: a server learns the mean of a group's summaries and of no member's.

The protocol of Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (figure 4 without signatures), in four exchanges between the server and each member:

1. keys      a member draws two key pairs; the server hands everybody's public keys round.
2. shares    a member splits the secrets of its masks among all members, sealed for each.
3. masked    a member adds its own mask and one with each other member, which cancel in the sum.
4. unmask    those still there return shares: of the own masks of members whose vector came, of the
             keys of members who fell out in between. With `threshold` of them the masks come off
             the sum, and of nothing else.

What it holds against: a server that follows the protocol and is curious, together with fewer than
`threshold` members; the threshold is more than half of the members, so that it can never gather
both secrets of one member. A server that lies about public keys is not held against: that takes
signed keys. The sum itself is exact and without noise: it carries no differential privacy, and of a
small group it tells much.

Secrets come from the operating system. Since masks cancel to the last bit, the sum is the same in
every run.

Flower's own protocol (`SecAggPlusWorkflow` with `secaggplus_mod`, flwr 1.41) is not used: it wants
the legacy context, strategy and client manager; its masks come from seeds of 32 bits or fewer
(flwrlabs/flower issue 7522); it rounds by numpy's global generator, so no two runs agree; and a
member lost before its vector came ends the round without an error.
"""
