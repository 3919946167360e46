"""The stage of the reward model: which training a kind has, the choice of a threshold, what answers must say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cluster.recipes.context import RunContext
from cluster.recipes.rewards import REWARD_MODEL, choose, scale_answers, trust_in
from cluster.recipes.stage import settings_of
from learners.supervised.frame_training import ProgressTrainer
from learners.supervised.jobs import RewardJob
from learners.supervised.loop import WHOLE
from learners.supervised.reward_training import RewardTrainer
from learners.supervised.thresholds import Judged, choose_bounded_threshold, choose_threshold
from tests.reward_models.test_videomae import make_episodes
from tests.support.implementations import vlm_folder
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.registry import load_reward_model

FRAME = ["reward.kind=frame", "reward.steps=2"]


@pytest.mark.parametrize("weight", [0, 1])
def test_a_progress_head_is_trained_only_where_it_is_asked_for(tmp_path, weight):
    config = load_config("smoke", [*FRAME, f"reward.progress_weight={weight}"])
    job = RewardJob(config, make_episodes(), ("blue", "pink"), tmp_path / "model")
    trainer = job.begin(WHOLE, torch.device("cpu"))
    assert type(trainer) is (ProgressTrainer if weight else RewardTrainer)
    trainer.step()
    assert job.finish(trainer, 1.0)["positive_clips"] == 12
    loaded: Any = load_reward_model(config, str(tmp_path / "model"), device="cpu")
    assert loaded.knows_progress == bool(weight) and loaded.instructions == ("blue", "pink")


def test_without_a_bound_the_threshold_is_the_best_and_with_one_it_keeps_the_bound():
    rng = np.random.default_rng(0)
    success = np.arange(400) % 2 == 0
    judged = [Judged(np.clip(np.where(success, 0.7, 0.3) + rng.normal(0, 0.25, 400), 0, 1), success)]
    assert choose(judged, 0.0)[0] == choose_threshold(*judged[0])[0]
    threshold = choose(judged, 0.05)[0]
    assert threshold == choose_bounded_threshold(judged, 0.05)[0]
    found = trust_in(judged[0], threshold)
    assert found["false_positive_rate"] < found["false_positive_bound"] <= 0.05 and found["num_failures"] == 200
    assert trust_in(Judged(np.ones(3), np.ones(3, bool)), 0.5)["false_positive_rate"] is None


def test_answers_that_say_nothing_end_the_stage_unless_it_is_forced(tmp_path, monkeypatch):
    vlm = [f"reward.pretrained={vlm_folder()}", "reward.kind=vlm", "reward.steps=0", "reward.calibration_clips=8"]
    config = load_config("smoke", vlm)
    monkeypatch.setattr("learners.supervised.vlm_calibration.fit_scale", lambda odds, success: (0.0, 0.1))
    context = SimpleNamespace(config=config, force=False, model=lambda name: tmp_path / name)
    with pytest.raises(UserError, match="say nothing of the outcome.*on 8 clips.*--force"):
        scale_answers(cast(RunContext, context), make_episodes(8))
    assert not (tmp_path / "reward-model").exists()
    context.force = True
    assert scale_answers(cast(RunContext, context), make_episodes(8))["calibration_offset"] == 0.1
    assert (tmp_path / "reward-model" / "reward_model.json").exists()


def test_a_folder_that_holds_no_such_model_is_refused_before_the_first_stage(tmp_path: Path):
    vlm = [f"reward.pretrained={tmp_path}", "reward.kind=vlm", "reward.steps=0"]
    with pytest.raises(UserError, match=r"^reward.pretrained: .*model.safetensors"):
        REWARD_MODEL.check(load_config("smoke", vlm), True)
    whole = [f"reward.pretrained={vlm_folder()}", "reward.kind=vlm", "reward.steps=0"]
    REWARD_MODEL.check(load_config("smoke", whole), True)


def test_a_result_depends_on_what_its_kind_is_asked_and_not_on_settings_at_which_nothing_changes():
    vlm = ["reward.kind=vlm", "reward.pretrained=somewhere", "reward.steps=0"]
    asked, frame, plain = (
        settings_of(REWARD_MODEL, load_config("smoke", settings)) for settings in (vlm, FRAME, ["name=other"])
    )
    assert {"reward.prompt", "reward.num_frames", "reward.calibration_clips"} <= asked.keys()
    assert "reward.progress_weight" in frame
    assert not {"reward.max_false_positive_rate", "reward.progress_weight", "reward.prompt"} & plain.keys()
