"""Alignment, which is advanced from outside, goes on where its actor was lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from learners.supervised.jobs import AlignmentJob
from learners.supervised.training_actor import TrainingActor
from wmpo_ray.config.run import Config
from wmpo_ray.data.store import save_episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout.evaluation import rollout_expert

ALIGNMENT = {
    "environment": {"horizon": 8},
    "world_model": {
        "pretrained": "",
        "network": {"hidden_size": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "denoiser": {"prediction": "sample", "input_scaling": True, "residual": True},
        "sampler": {"num_steps": 1},
        "alignment": {"steps": 25, "batch_size": 4, "warmup_steps": 2},
    },
}


def align(folder: Path, *, checkpoint_dir: Path, every: int = 7, calls: int | None = None) -> tuple:
    """Advance to the end, or `calls` times: metrics, file of weights, progress, what was reported."""
    rollouts, expert, held_out = (
        rollout_expert(PocketEnvironment(8), np.arange(first, first + 4), 2.0, (0, "demos")) for first in (0, 10, 20)
    )
    config = Config.model_validate({**ALIGNMENT, "checkpoint": {"every_training_steps": every}})
    collected = checkpoint_dir.with_name("held-out.parquet")
    save_episodes(collected, held_out)
    actor = TrainingActor(config, str(checkpoint_dir))
    done, said = actor.begin(AlignmentJob(config, "world-model", "", rollouts, expert, collected, 4, folder))
    steps = [done]
    while steps[-1] < 25 and (calls is None or len(steps) <= calls):
        steps.append(actor.advance()[0])
    if calls is not None:
        return {}, b"", steps, said
    metrics = actor.finish()
    return metrics, (folder / "diffusion_pytorch_model.safetensors").read_bytes(), steps, said


def test_alignment_goes_on_where_its_actor_was_lost(tmp_path):
    straight = align(tmp_path / "straight", checkpoint_dir=tmp_path / "never", every=0)
    assert straight[2] == [0, 10, 20, 25]
    for calls, resumed in ((1, [7, 10, 20, 25]), (3, [21, 25])):
        checkpoints = tmp_path / f"checkpoints-{calls}"
        align(tmp_path / "lost", checkpoint_dir=checkpoints, calls=calls)
        metrics, weights, steps, told = align(tmp_path / f"resumed-{calls}", checkpoint_dir=checkpoints)
        assert steps == resumed and f"step {resumed[0]}" in told[0]
        assert (metrics, weights) == straight[:2]
    assert not (tmp_path / "lost").exists()
