"""Secure aggregation: a server learns the mean of a group's summaries, and no single summary.

The protocol of Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (figure 4 without signatures), in four exchanges between the server and each member:

1. keys      each member draws two key pairs; the server distributes all public keys.
2. shares    each member splits the secrets of its masks among all members, sealed for each.
3. masked    each member adds its own mask, and one per other member, which cancel in the sum.
4. unmask    the remaining members return shares: of the own mask of each member whose vector
             arrived, of the mask key of each member that dropped out since step 2. `threshold`
             shares remove the masks from the sum, and from nothing else.

Threat model: a server that follows the protocol but is curious, colluding with fewer than
`threshold` members. The threshold is more than half of the members, so the server can never collect
both secrets of one member. It does not protect from a server that lies about public keys, which
would take signed keys. The sum itself is exact and has no noise: it gives no differential privacy,
and the sum of a small group reveals much.

Secrets come from the operating system. Because masks cancel to the last bit, the sum is the same
in every run.

Flower's own protocol (`SecAggPlusWorkflow` with `secaggplus_mod`, flwr 1.41) is not used: it needs
the legacy context, strategy and client manager; its masks come from seeds of 32 bits or fewer
(flwrlabs/flower issue 7522); it rounds by numpy's global generator, so two runs differ; and a
member that is lost before its vector arrives ends the round without an error.
"""
