"""A small policy behind a real server on 127.0.0.1, and robots that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.serving.policy_server import PolicyServer, ServingOptions
from tests.support.implementations import make_tiny
from tests.support.remote_servers import TOKEN, Served
from wmpo_client.served_policy import Seen
from wmpo_client.serving.locked_server import Lock
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.remote.episode_service import add_episodes
from wmpo_ray.remote.robot_episodes import EpisodeFolder
from wmpo_ray.remote.served_weights import Weights

CONFIG = load_config("smoke", tuple(f"policy.network.{each}" for each in ("width=16", "num_layers=1", "num_heads=2")))


def seen(value: int = 0, instruction: str = INSTRUCTIONS[0]) -> Seen:
    """A frame that is different for each value."""
    frame = np.random.default_rng(value).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    return Seen({"main": frame}, instruction)


def expected(view: Seen, robot: str, episode: int, chunk: int) -> np.ndarray:
    """What the policy itself decides [K, D]."""
    seed = seed_for(CONFIG.seed, "serve", robot, episode, chunk)
    with torch.no_grad():
        decision = make_tiny().act(Observation.of(view.images["main"][None], [view.instruction]), 1.0, [seed])
    return decision.actions[0].numpy()


class ServedTiny(Served):
    """`policy`: its folder. `server_of_policy`: the PolicyServer inside."""

    def __init__(self, folder: Path, episodes: Path | None = None, **options: Any):
        self.folder = folder / "policy"
        if not self.folder.exists():
            make_tiny().save_pretrained(self.folder)
        self.weights = Weights(self.folder, 7)
        options = {"listen": "127.0.0.1:0", "lock": Lock(TOKEN), "temperature": 1.0, **options}

        async def start() -> tuple[Any, int]:
            inside = PolicyServer(CONFIG, lambda: self.weights, ServingOptions(**options))
            self.inside = inside
            self.episodes = None if episodes is None else EpisodeFolder(episodes)
            extra = [] if self.episodes is None else [add_episodes(self.episodes, inside.metrics)]
            await inside.start(*extra)
            return inside.server, inside.port

        super().__init__(start)

    def stop(self) -> None:
        if self.inside.openpi is not None:
            self.run(self.inside.openpi.stop())
        super().stop()

    @property
    def metrics(self) -> Any:
        return self.inside.metrics

    def refused(self, reason: str) -> int:
        return int(self.metrics.value("wmpo_serve_refusals_total", reason=reason))
