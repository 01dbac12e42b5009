"""Attacks: what a server can infer from the releases that it receives.

Plain functions on arrays. `attributes` infers who a speaker is like (gender, accent, language),
`reidentification` who a speaker is, `membership` whether a clip was among those that a client tuned
on. Each answers with `result.Finding`s: a figure, its interval and what guessing would reach.
"""
