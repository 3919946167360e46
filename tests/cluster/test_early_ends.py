"""Nothing is imagined after a success, and no weight knows it: in one process, on Ray, with doubted and with wrong labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from cluster.host.connection import start_here
from cluster.loop.team import ModelPaths
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support import small_run
from tests.support.small_run import SETTINGS, make_loop, run, save_models, small_config
from wmpo_ray.config.run import Config
from wmpo_ray.world_models.diffusion import DiffusionWorldModel


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


def placed(placement: str, slots: int = 4, **reward) -> Config:
    settings = {
        **SETTINGS,
        "rollout": {**SETTINGS["rollout"], "slots": slots},
        "reward": {**SETTINGS["reward"], "placement": placement, **reward},
    }
    return Config.model_validate(settings)


def shared(lines: list[dict]) -> list[list[float]]:
    keys = ("policy/loss", "imagined/success_rate", "imagined/success_length_frames", "queue/uniform")
    return [[line[key] for key in keys] for line in lines if "policy/loss" in line]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> tuple[str, list[dict]]:
    return run(placed("own"), SerialRuntime(), models, tmp_path_factory.mktemp("whole"))


def test_trajectories_that_end_early_lead_to_the_same_weights(models, tmp_path, whole):
    digest, lines = run(placed("with_imagination"), SerialRuntime(), models, tmp_path)
    assert digest == whole[0] and shared(lines) == shared(whole[1])
    assert all("time/score_s" not in line for line in lines), "no reward worker is there"
    checked = [line for line in lines if "real/label_agreement" in line]
    assert len(checked) == 3, "labels are compared with reality as before"


@pytest.mark.slow  # with_imagination on Ray: also in test_members.py
def test_on_ray_too(models, tmp_path, whole):
    start_here(num_cpus=4)
    try:
        loop, _ = make_loop(placed("with_imagination"), RayRuntime(), models, tmp_path / "looked at")
        assert set(loop.crew.pools) == {"imagination", "learner", "environment"}
        loop.ledger.close()
        loop.team.stop()
        assert run(placed("with_imagination"), RayRuntime(), models, tmp_path)[0] == whole[0]
    finally:
        ray.shutdown()


def test_successes_that_a_second_world_doubts_are_doubted_alike_with_early_ends(models, tmp_path, whole, monkeypatch):
    config = placed("own", verify={"enabled": True, "until": "finish"})
    other = DiffusionWorldModel.load(models / "world-model")
    with torch.no_grad():
        for parameter in other.denoiser.network.parameters():
            parameter.mul_(1.02)
    other.save(models / "verifier")
    monkeypatch.setattr(small_run, "model_paths", verified_by)
    one = run(config, SerialRuntime(), models, tmp_path / "own")
    early = placed("with_imagination", verify={"enabled": True, "until": "finish"})
    assert run(early, SerialRuntime(), models, tmp_path / "early")[0] == one[0] != whole[0]


def verified_by(folder: Path, checkpoints: Path) -> ModelPaths:
    return ModelPaths(
        folder / "policy", folder / "world-model", folder / "verifier", folder / "reward-model", checkpoints
    )


def test_wrong_labels_are_drawn_alike_wherever_they_are_judged(models, tmp_path, whole):
    noise = {"label_noise": {"false_positives": 0.2, "false_negatives": 0.2}}
    one, other = (
        run(placed(place, **noise), SerialRuntime(), models, tmp_path / place) for place in ("own", "with_imagination")
    )
    assert one[0] == other[0] != whole[0]
