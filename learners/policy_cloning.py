"""Behaviour cloning: the base policy from expert demonstrations (the "SFT" stage)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from wmpo_ray.config import CloningConfig
from wmpo_ray.policies.action_tokens import encode_actions
from wmpo_ray.policies.tiny import TinyPolicy
from wmpo_ray.seeding import generator_for
from wmpo_ray.types import Episodes


def clone_policy(
    policy: TinyPolicy,
    demos: Episodes,
    config: CloningConfig,
    seed: int,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> dict[str, float]:
    """Cross-entropy of the expert's next K actions at every step of every demonstration; trains `policy` in place.

    After the end of a demonstration its last action repeats. Steps with a loss that is not finite are skipped.
    """
    started = time.monotonic()
    generator = generator_for(seed, "cloning")
    rows, steps = _decisions(demos)
    tokens = encode_actions(torch.from_numpy(_padded_actions(demos, policy.chunk_length)), policy.config.num_bins)
    frames = torch.from_numpy(demos.frames)
    words = policy.word_ids(demos.instructions)
    optimizer = torch.optim.AdamW(
        policy.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    smoothed, skipped = 0.0, 0
    policy.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        chosen = torch.randint(len(rows), (config.batch_size,), generator=generator)
        row, t = rows[chosen], steps[chosen]
        target = tokens[row[:, None], t[:, None] + torch.arange(policy.chunk_length)].flatten(1)
        logits = policy(frames[row, t], words[row])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            skipped += 1
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        smoothed = float(loss.detach()) if step == 0 else 0.95 * smoothed + 0.05 * float(loss.detach())
        progress(step + 1, {"loss": smoothed})
    policy.eval()
    return {"loss": smoothed, "skipped_steps": skipped, "seconds": time.monotonic() - started}


def _schedule(step: int, total: int, warmup: int = 50) -> float:
    """Warm-up, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / warmup) * (0.475 * (1 + math.cos(math.pi * step / total)) + 0.05)


def _decisions(demos: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and step of every frame at which an action was still taken."""
    before_end = np.arange(demos.actions.shape[1])[None] < demos.lengths[:, None]
    rows, steps = np.nonzero(before_end)
    return torch.from_numpy(rows), torch.from_numpy(steps)


def _padded_actions(demos: Episodes, extra: int) -> np.ndarray:
    """Actions [M, T+extra, D] in which the last real one repeats after the end."""
    horizon = demos.actions.shape[1]
    last = np.minimum(np.arange(horizon + extra)[None], demos.lengths[:, None] - 1)
    return np.take_along_axis(demos.actions, last[..., None], 1)
