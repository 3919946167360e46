"""Behaviour cloning: the base policy from expert demonstrations (the "SFT" stage)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from learners.training_state import NO_CHECKPOINTS, Parts, TrainingCheckpoints
from wmpo_ray.config import CloningConfig
from wmpo_ray.policies.action_tokens import encode_actions
from wmpo_ray.policies.tiny import TinyPolicy
from wmpo_ray.seeding import generator_for
from wmpo_ray.types import Episodes


class PolicyCloner:
    """Cross-entropy of the expert's next K actions at every step of every demonstration.

    After the end of a demonstration its last action repeats.
    """

    def __init__(self, policy: TinyPolicy, demos: Episodes, config: CloningConfig, seed: int):
        self.policy, self.config = policy, config
        self.rows, self.steps = _decisions(demos)
        actions = torch.from_numpy(_padded_actions(demos, policy.chunk_length))
        self.tokens = encode_actions(actions, policy.config.num_bins)
        self.frames = torch.from_numpy(demos.frames)
        self.words = policy.word_ids(demos.instructions)
        self.generator = generator_for(seed, "cloning")
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )

    def step(self, step: int) -> float | None:
        """One optimizer step; returns the loss, or None if it is not finite and the step is skipped."""
        config, chunk = self.config, self.policy.chunk_length
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        chosen = torch.randint(len(self.rows), (config.batch_size,), generator=self.generator)
        row, t = self.rows[chosen], self.steps[chosen]
        target = self.tokens[row[:, None], t[:, None] + torch.arange(chunk)].flatten(1)
        logits = self.policy(self.frames[row, t], self.words[row])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            return None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
        self.optimizer.step()
        return float(loss.detach())


def clone_policy(
    policy: TinyPolicy,
    demos: Episodes,
    config: CloningConfig,
    seed: int,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
) -> dict[str, float]:
    """Train `policy` in place, from the newest checkpoint if there is one; returns the last smoothed loss.

    Steps with a loss that is not finite are skipped and counted.
    """
    started = time.monotonic()
    cloner = PolicyCloner(policy, demos, config, seed)
    parts: Parts = {"policy": policy, "optimizer": cloner.optimizer, "generator": cloner.generator}
    first, numbers = checkpoints.restore(parts) or (0, {"loss": 0.0, "skipped_steps": 0})
    policy.train()
    for step in range(first, config.steps):
        loss = cloner.step(step)
        if loss is None:
            numbers["skipped_steps"] += 1
        else:
            numbers["loss"] = loss if step == 0 else 0.95 * numbers["loss"] + 0.05 * loss
        progress(step + 1, {"loss": numbers["loss"]})
        checkpoints.save(step + 1, parts, numbers)
    policy.eval()
    seconds = time.monotonic() - started
    return {"loss": numbers["loss"], "skipped_steps": numbers["skipped_steps"], "seconds": seconds}


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
