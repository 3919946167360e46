"""A reward worker: the reward model and, if successes are verified, a second world model."""

from __future__ import annotations

import time

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Judge
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.types import Scores, Videos
from wmpo_ray.registry import load_reward_model, load_world_model
from wmpo_ray.rollout.judge import NoisyJudge, VerifiedJudge, VideoJudge


class RewardActor:
    def __init__(self, config: Config, reward_model_dir: str, verifier_dir: str | None):
        configure_process(config.cluster.threads_per_process)
        self.judge: Judge = VideoJudge(load_reward_model(config, reward_model_dir), config.reward.min_steps)
        if verifier_dir:
            verifier = load_world_model(config, verifier_dir)
            self.judge = VerifiedJudge(self.judge, verifier, config.reward.verify.disputed)
        if (noise := config.reward.label_noise).is_on:
            self.judge = NoisyJudge(self.judge, noise.false_positives, noise.false_negatives)
        self.num_beats = 0

    def score(self, videos: Videos) -> tuple[Scores, float]:
        """One decision for each video, and the seconds it took."""
        started = time.monotonic()
        scores = self.judge.judge(videos)
        self.num_beats += 1
        return scores, time.monotonic() - started
