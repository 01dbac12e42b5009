"""Audits: what the server's view of a run gives away, and whether noise is as strong as claimed.

`views` turns releases into vectors, `voices` senses speakers as devices would, `attack` applies
`fedsim.privacy.attacks` to them, `claim` measures epsilon, `record` stores and `table` prints.
"""
