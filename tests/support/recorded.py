"""Recorded episodes of the pocket environment: the expert's successes and a random hand's failures, seed by seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.rollout.evaluation import rollout_expert

HORIZON = 16


def offline_config(kind: str, **settings: Any) -> Config:
    """A run that trains with an offline algorithm, small enough for a test."""
    shared = {key: value for key, value in SETTINGS.items() if key != "grpo"}
    section = {"num_updates": 3, "episodes_per_update": 8, "minibatch_trajectories": 4, "learning_rate": 1e-3}
    return Config.model_validate(
        {**shared, "environment": {"horizon": HORIZON}, "algorithm": {"kind": kind}, kind: {**section, **settings}}
    )


def successes(count: int = 6) -> Episodes:
    """The expert's; a test that needs them all says so."""
    episodes = rollout_expert(PocketEnvironment(HORIZON), np.arange(count), 0.0, (0, "demos"))
    return replace(episodes, success=np.ones(count, bool))


def failures(count: int = 6) -> Episodes:
    """A hand that moves at random, from the same start states."""
    environment = PocketEnvironment(HORIZON)
    frames = [environment.reset(np.arange(count))]
    actions = np.random.default_rng(0).uniform(-1, 1, (count, HORIZON, 3)).astype(np.float32)
    frames += [environment.step(actions[:, t])[0] for t in range(HORIZON)]
    lengths, nothing = np.full(count, HORIZON), np.zeros(count, bool)
    texts = tuple(environment.instruction)
    return Episodes(np.stack(frames, 1), actions, lengths, nothing, texts, np.arange(count))


def joined(*parts: Episodes) -> Episodes:
    names = ("frames", "actions", "lengths", "success", "seeds")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Episodes(**columns, instructions=tuple(text for part in parts for text in part.instructions))


def recorded(count: int = 6) -> Episodes:
    return joined(successes(count), failures(count))


def tiny_policy(config: Config) -> TinyPolicy:
    torch.manual_seed(0)
    settings = config.policy.network.model_dump()
    return TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).eval()


def save_tiny_policy(config: Config, folder: Path) -> str:
    tiny_policy(config).save_pretrained(folder)
    return str(folder)
