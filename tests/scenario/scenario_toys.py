"""Two scenario files: one with most of the keys, and the smallest one."""

FULL = """\
# fedsim run prompts
name: prompts
description: |
  Five languages.
  More of it.
seed: 7
model:
  id: some/whisper
  window_s: 10
corpus:
  path: some/prompts
  group_by: language
clients:
  select: [en, es, no]
  budget_mb: [30, 40.5, 1e2]
methods:
  - fp32
  - uniform
  - allocation: myqasr
    calibration: [minmax, cosine]
    tuned_on: [own, other]
  - {allocation: shuffled, draws: 3}
engine:
  kind: ray
"""
SMALL = """\
name: a
model: {id: m}
corpus: {path: p, group_by: speaker}
clients: {budget_mb: 40}
methods: [fp32]
"""
