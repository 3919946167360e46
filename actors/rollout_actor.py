"""One imagination worker: a world model and a replica of the policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from actors.replica import Replica
from wmpo_ray.config.run import Config
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import RolloutRequest, Trajectories, Videos
from wmpo_ray.data.spool import save_trajectories
from wmpo_ray.registry import load_policy, load_world_model
from wmpo_ray.rollout.act import imagine


class Imagination(NamedTuple):
    """What the driver hears of an imagined request."""

    seconds: float
    sha256: str  # of the spooled trajectories


class ImaginationActor(Replica):
    """Plain class; `cluster` wraps it where it is placed."""

    def __init__(self, config: Config, policy_dir: str, world_model_dir: str):
        configure_process(config.cluster.threads_per_process)
        super().__init__(load_policy(config, policy_dir), config.cluster.threads_per_process)
        self.config = config
        self.world_model = load_world_model(config, world_model_dir)
        self.num_beats = 0

    def imagine(self, request: RolloutRequest, spool: str | None = None) -> tuple[Imagination, Videos, Trajectories]:
        """Imagine a request: figures for the driver, videos for a reward actor, trajectories for the learner.

        `spool` is where the trajectories are also written, so that a restart of the run need not imagine them again.
        Raises RuntimeError if the replica does not hold the weights that the request asks for.
        """
        if self.version.digest != request.weights:
            raise RuntimeError(f"request {request.request_id} wants weights {request.weights}, not {self.version}")
        started = time.monotonic()
        result = imagine(self.policy, self.world_model, request, self.config.num_chunks, self.count_beat)
        with span("spool"):
            sha256 = save_trajectories(Path(spool), result.trajectories) if spool else ""
        return Imagination(time.monotonic() - started, sha256), result.videos, result.trajectories

    def count_beat(self) -> None:
        """Called after every chunk: a worker that gets on is not hung, however long its request."""
        self.num_beats += 1
