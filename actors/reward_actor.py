"""A reward worker: the reward model and, if successes are verified, a second world model."""

from __future__ import annotations

import time

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Judge
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.types import Scores, Videos
from wmpo_ray.registry import load_reward_model, load_world_model
from wmpo_ray.rollout.confirmation import FinishVerifiedJudge
from wmpo_ray.rollout.judge import NoisyJudge, VerifiedJudge, VideoJudge


def make_judge(config: Config, judge: Judge, verifier_dir: str | None, again: VideoJudge) -> Judge:
    """A judge with the verification and the label noise that the config asks for; `again`: judges replays."""
    if verifier_dir:
        verifier, settings = load_world_model(config, verifier_dir), config.reward.verify
        if settings.until == "finish":
            judge = FinishVerifiedJudge(judge, verifier, again, settings.disputed, config.rollout.slots)
        else:
            judge = VerifiedJudge(judge, verifier, settings.disputed, again)
    if (noise := config.reward.label_noise).is_on:
        judge = NoisyJudge(judge, noise.false_positives, noise.false_negatives)
    return judge


class RewardActor:
    def __init__(self, config: Config, reward_model_dir: str, verifier_dir: str | None):
        configure_process(config.cluster.threads_per_process)
        judge = VideoJudge(load_reward_model(config, reward_model_dir), config.reward.min_steps)
        self.judge = make_judge(config, judge, verifier_dir, judge)
        self.num_beats = 0

    def score(self, videos: Videos) -> tuple[Scores, float]:
        """One decision for each video, and the seconds it took."""
        started = time.monotonic()
        scores = self.judge.judge(videos)
        self.num_beats += 1
        return scores, time.monotonic() - started
