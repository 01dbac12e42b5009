"""Attacks: what a server can infer from the releases that it receives.

Plain functions on arrays. `attributes` infers gender, accent or language of a speaker,
`reidentification` who the speaker is, `membership` whether a client tuned on a clip. Each returns
`result.Finding`s: a figure, its interval and its value for guessing.
"""
