"""A training run of seconds with real, tiny, untrained models, for the laws of the main loop.

Run as a program it does the whole run in its own process: `python -m tests.support.small_run FOLDER UPDATES`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch

from cluster.events.event_log import LOGGER
from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.rollout.fidelity import replay_videos
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

SETTINGS = {
    "environment": {"horizon": 8},
    "policy": {"network": {"width": 32, "num_layers": 1, "num_heads": 2}},
    "world_model": {
        "network": {"hidden_size": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "denoiser": {"prediction": "sample", "input_scaling": True, "residual": True, "action_bands": 1},
        "sampler": {"num_steps": 1},
    },
    "reward": {"network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}},
    "rollout": {"group_size": 4, "groups_per_update": 4, "groups_per_request": 2},
    "grpo": {"num_updates": 3, "minibatch_trajectories": 8, "learning_rate": 1e-3},
    "evaluation": {"num_starts_on_the_way": 4, "every_updates": 2},
    "placement": {"imagination": {"cpus": 0.2}, "reward": {"cpus": 0.2}, "learner": {"cpus": 0.2}},
}


def small_config(**cluster) -> Config:
    return Config.model_validate({**SETTINGS, "cluster": cluster})


def small_starts(count: int = 12) -> list[StartState]:
    environment = PocketEnvironment(8)
    frames = environment.reset(np.arange(count))
    return [
        StartState(f[None], text, i) for i, (f, text) in enumerate(zip(frames, environment.instruction, strict=True))
    ]


def save_models(folder: Path, config: Config) -> None:
    """Untrained models; the reward model's threshold is the median of what it sees, so that outcomes are mixed."""
    torch.manual_seed(0)
    settings = config.policy.network.model_dump()
    TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).save_pretrained(
        folder / "policy"
    )
    world_model = DiffusionWorldModel.create(config.world_model, 3, config.rollout.chunk_length, seed=1)
    # A fresh network predicts no change at all; let it imagine something that depends on the actions.
    for parameter in world_model.denoiser.network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    world_model.save(folder / "world-model")
    reward = VideoMAERewardModel.create(config.reward, 16, (), seed=2)
    starts = small_starts()
    actions = np.random.default_rng(3).uniform(-1, 1, (len(starts), config.environment.horizon, 3)).astype(np.float32)
    videos = replay_videos(world_model, starts, actions, seed=4)
    best = reward.probabilities(videos, [start.instruction for start in starts]).max(1)
    reward.threshold = float(np.median(best))
    reward.save(folder / "reward-model")


def model_paths(folder: Path, checkpoints: Path) -> ModelPaths:
    return ModelPaths(folder / "policy", folder / "world-model", None, folder / "reward-model", checkpoints)


class ListLog(logging.Handler):
    """Keeps what is logged: metrics of updates in `lines`, events in `events`, and their texts in `told`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[dict] = []
        self.events: list[dict] = []
        self.told: list[str] = []
        LOGGER.setLevel(logging.INFO)
        LOGGER.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "event"):  # what a library says besides is none
            self.events.append({"event": record.event, **record.facts})
            self.told.append(record.getMessage())

    def close(self) -> None:
        LOGGER.removeHandler(self)
        super().close()

    def metrics(self, update: int, values: dict[str, float]) -> None:
        self.lines.append({"update": update, **values})

    def restore(self, history: list[dict]) -> set[int]:
        return set()


def make_loop(config: Config, runtime: Runtime, models: Path, folder: Path) -> tuple[TrainingLoop, ListLog]:
    """A loop on a folder, which holds checkpoints, ledger and rollouts."""
    folder.mkdir(parents=True, exist_ok=True)
    log, ledger = ListLog(), Ledger(folder / "ledger.jsonl")
    team = Team(config, runtime, model_paths(models, folder / "checkpoints"))
    rollouts = Rollouts(config, team, ledger, *rollout_folders(folder))
    return TrainingLoop(config, team, small_starts(), ledger, log, rollouts), log


def run(config: Config, runtime: Runtime, models: Path, folder: Path) -> tuple[str, list[dict]]:
    """Train, from a checkpoint if there is one; returns the hash of the final weights and what was logged."""
    loop, log = make_loop(config, runtime, models, folder)
    return finish(loop, folder), log.lines


def finish(loop: TrainingLoop, folder: Path) -> str:
    """Run a loop to its end; the account must balance."""
    try:
        version = loop.run(str(folder / "policy"))
    finally:
        if isinstance(loop.log, ListLog):
            loop.log.close()
        loop.ledger.close()
        loop.team.stop()
    assert loop.ledger.account().balances
    return version.digest


if __name__ == "__main__":
    settings = small_config()
    settings = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"num_updates": int(sys.argv[2])})})
    digest, _ = run(settings, SerialRuntime(), Path(sys.argv[1]) / "models", Path(sys.argv[1]) / "run")
    print(digest)
