"""One reward worker: the reward model and, where successes are verified, a second world model."""

from __future__ import annotations

import time

import numpy as np

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import WorldModel
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Scores, Videos
from wmpo_ray.registry import load_reward_model, load_world_model
from wmpo_ray.reward_models.decisions import score_videos, verify_successes
from wmpo_ray.rollout.act import imagine_actions


class RewardActor:
    def __init__(self, config: Config, reward_model_dir: str, verifier_dir: str | None):
        configure_process(config.cluster.threads_per_process)
        self.config = config
        self.model = load_reward_model(config, reward_model_dir)
        self.num_beats = 0
        self.verifier = load_world_model(config, verifier_dir) if verifier_dir else None

    def score(self, videos: Videos) -> tuple[Scores, float]:
        """One decision for each video, and the seconds it took."""
        started = time.monotonic()
        with span("score"):
            scores = score_videos(self.model, videos.frames, videos.instructions, self.config.reward.min_steps)
        if (verifier := self.verifier) is not None:
            with span("verify"):
                scores = verify_successes(scores, lambda rows: self._imagine_again(verifier, videos, rows))
        self.num_beats += 1
        return scores, time.monotonic() - started

    def _imagine_again(self, verifier: WorldModel, videos: Videos, rows: np.ndarray) -> Scores:
        members = [(group, member) for group in videos.requests for member in range(group.group_size)]
        keys = [members[row] for row in rows]
        starts = [group.start for group, _ in keys]
        again = imagine_actions(verifier, starts, videos.actions[rows], keys)
        texts = [videos.instructions[row] for row in rows]
        return score_videos(self.model, again, texts, self.config.reward.min_steps)
