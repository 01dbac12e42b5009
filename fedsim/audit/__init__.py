"""Audits: what the server's view of a run gives away, and whether noise is what it is said to be.

`views` turns releases into vectors, `voices` senses speakers as devices would, `attack` puts the
attacks of `fedsim.privacy.attacks` to them, `claim` measures epsilon, `write` keeps and prints.
"""
