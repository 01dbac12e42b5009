"""The training loop of both models: resumable, with the same batch at the same step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """Steps, peak learning rate, and how many steps it takes to reach it."""

    steps: int
    peak: float
    warmup: int = 300

    def rate(self, step: int) -> float:
        """Return the learning rate: a linear rise, then a cosine decay."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


def train(
    module: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    score: Callable[[], float],
    schedule: Schedule,
    folder: Path,
    every: int = 500,
) -> list[dict[str, float]]:
    """Train from the last checkpoint in `folder`, or from the start; return the log.

    Args:
        module: trained in place, arithmetic in bfloat16 where autocast uses it.
        loss_at: step -> loss of that step's batch.
        score: measures the module on held-out clips, every `every` steps.
        schedule: number of steps and learning rates.
        folder: checkpoints and log.jsonl.
        every: steps between checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.peak,
        betas=(0.9, 0.98),
    )
    first, log = 0, []
    saved = folder / "checkpoint.pt"
    if saved.is_file():
        state = torch.load(saved, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, log = state["step"], state["log"]
        print(f"continuing from step {first:,}", flush=True)
    total, start = 0.0, time.monotonic()
    spent = log[-1]["seconds"] if log else 0.0
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        torch.manual_seed(step)
        module.train()
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:,} loss {loss.item():.3f}", flush=True)
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            module.eval()
            log.append(
                {
                    "step": step + 1,
                    "loss": round(total / ((step % every) + 1), 4),
                    "score": round(score(), 4),
                    "seconds": round(spent + time.monotonic() - start),
                }
            )
            total = 0.0
            print(json.dumps(log[-1]), flush=True)
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "log": log,
            }
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return log
