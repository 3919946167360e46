"""The supervised trainings: killed at any step and run again, they end with the weights of an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.supervised.cloning import clone_policy
from learners.supervised.jobs import AlignmentJob
from learners.supervised.reward_training import train_reward_model
from learners.supervised.training_actor import TrainingActor
from learners.supervised.training_state import NO_CHECKPOINTS, TrainingCheckpoints
from learners.supervised.world_model_training import WorldModelTrainer, train_world_model
from tests.support.small_world import small_world_model
from wmpo_ray.config.run import CloningConfig, Config, WorldModelTrainingConfig
from wmpo_ray.data.store import save_episodes
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.play import collect_play
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.rollout.evaluation import rollout_expert

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 8, 3
Progress = Callable[[int, dict[str, float]], None]


class Killed(BaseException):
    """What nothing in a training survives."""


class Outcome(NamedTuple):
    weights: dict[str, Tensor]
    metrics: dict[str, float]


def clone(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    demos = rollout_expert(PocketEnvironment(8), np.arange(6), 0.1, (0, "demos"))
    torch.manual_seed(0)
    vocabulary = vocabulary_of(PocketEnvironment.instructions)
    policy = TinyPolicy(TinyPolicyHFConfig(width=16, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary))
    # Some batches have a loss that is not finite; which ones follows from the batch alone.
    policy.register_forward_hook(lambda _, inputs, logits: logits / 0 if int(inputs[0].sum()) % 3 == 0 else logits)
    config = CloningConfig(steps=STEPS, batch_size=8, learning_rate=3e-3)
    metrics = clone_policy(policy, demos, config, 5, progress, checkpoints)
    return Outcome(policy.state_dict(), metrics)


def train_rewards(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    episodes = rollout_expert(PocketEnvironment(24), np.arange(12), 3.0, (0, "demos"))
    network = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    config = VideoMAERewardConfig.model_validate(
        {"network": network, "steps": STEPS, "batch_size": 8, "swapped_share": 0.4}
    )
    model = VideoMAERewardModel.create(config, 16, sorted(set(episodes.instructions)), seed=0)
    metrics = train_reward_model(model, config, episodes, 5, progress, checkpoints)
    return Outcome(model.network.state_dict(), metrics)


def train_world(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    play = collect_play(12, 12, seed=0)
    sampler = WindowSampler(play.frames, play.actions, np.full(12, 12), context_frames=2, chunk_length=4)
    config = WorldModelTrainingConfig(steps=STEPS, batch_size=4, learning_rate=3e-3, warmup_steps=2, ema_decay=0.9)
    trainer = WorldModelTrainer(small_world_model(), config, seed=5)
    weight = trainer.network.x_embedder.proj.weight
    weight.register_hook(lambda gradient: gradient / 0 if trainer.num_steps in (1, 4) else gradient)
    metrics = train_world_model(trainer, [sampler], [1.0], progress, checkpoints)
    return Outcome(dict(trainer.network.state_dict()), metrics)


TRAININGS = {"policy": clone, "reward model": train_rewards, "world model": train_world}


@pytest.fixture(scope="module")
def straight() -> dict[str, Outcome]:
    """Each training without a break, and without checkpoints."""
    torch.set_float32_matmul_precision("highest")  # a module's fixture comes before what conftest does for each test
    return {name: train(lambda step, metrics: None, NO_CHECKPOINTS) for name, train in TRAININGS.items()}


def play(name: str, folder: Path, stop: int = 0, every: int = EVERY) -> tuple[Outcome | None, list[int], list[str]]:
    """Train, killed after step `stop`: outcome, steps that were made, what was told."""
    steps: list[int] = []
    told: list[str] = []

    def progress(step: int, metrics: dict[str, float]) -> None:
        steps.append(step)
        if step == stop:
            raise Killed

    try:
        outcome = TRAININGS[name](progress, TrainingCheckpoints(folder, every, 2, told.append))
    except Killed:
        outcome = None
    return outcome, steps, told


def assert_same(one: Outcome | None, other: Outcome) -> None:
    assert one is not None and one.weights.keys() == other.weights.keys()
    assert [name for name, tensor in one.weights.items() if not torch.equal(tensor, other.weights[name])] == []
    assert {**one.metrics, "seconds": 0} == {**other.metrics, "seconds": 0}


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_at_any_step_and_run_again_it_ends_the_same(straight, tmp_path, name):
    for stop in range(1, STEPS + 1):
        folder = tmp_path / str(stop)
        assert play(name, folder, stop)[0] is None
        outcome, steps, _ = play(name, folder)
        # Killed after the step but before its state is saved: that step is made again, and none before the last save.
        assert steps == list(range((stop - 1) // EVERY * EVERY + 1, STEPS + 1))
        assert_same(outcome, straight[name])


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_again_and_again_it_ends_the_same(straight, tmp_path, name):
    for stop in (4, 5, 7):
        play(name, tmp_path, stop)
    outcome, steps, _ = play(name, tmp_path)
    assert steps == [7, 8]
    assert_same(outcome, straight[name])


def test_the_trainings_skip_steps_and_so_hold_the_counters_to_account(straight):
    assert 0 < straight["policy"].metrics["skipped_steps"] < STEPS
    assert straight["world model"].metrics["skipped_steps"] == 2


def test_checkpoints_are_kept_to_a_number_and_a_finished_training_needs_no_step(straight, tmp_path):
    play("reward model", tmp_path, every=2)
    assert checkpoints_in(tmp_path) == ["step-000006", "step-000008"]
    outcome, steps, _ = play("reward model", tmp_path, every=2)
    assert steps == []
    assert_same(outcome, straight["reward model"])


def test_without_an_interval_nothing_is_saved_but_what_is_there_is_used(straight, tmp_path):
    play("reward model", tmp_path / "never", every=0)
    assert not (tmp_path / "never").exists()
    play("reward model", tmp_path, stop=STEPS)
    outcome, steps, _ = play("reward model", tmp_path, every=0)
    assert steps == [7, 8]
    assert_same(outcome, straight["reward model"])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(straight, tmp_path, name):
    play(name, tmp_path, stop=STEPS)
    damaged = tmp_path / "step-000006" / "tensors.safetensors"
    damage(damaged)
    outcome, steps, told = play(name, tmp_path)
    assert steps == [4, 5, 6, 7, 8]
    assert str(damaged) in told[0] and "step-000003" in told[-1]
    assert_same(outcome, straight[name])


def test_with_no_whole_checkpoint_it_starts_anew_and_says_so(straight, tmp_path):
    play("world model", tmp_path, stop=STEPS)
    damage(tmp_path / "step-000006" / "tensors.safetensors")
    (tmp_path / "step-000003" / "meta.json").unlink()
    outcome, steps, told = play("world model", tmp_path)
    assert steps == list(range(1, STEPS + 1))
    assert str(tmp_path) in told[-1] and "from step 0" in told[-1]
    assert_same(outcome, straight["world model"])
    assert play("world model", tmp_path)[1] == [7, 8]  # its own checkpoints have taken the place of the damaged ones


CHILD = """
import sys
from pathlib import Path
import torch
from learners.supervised.training_actor import TrainingActor
from learners.supervised.training_state import TrainingCheckpoints
from tests.learners.test_stage_resume import train_world

def progress(step, metrics):
    print(step, flush=True)
    if step == 5:
        sys.stdin.read()  # until the end comes

torch.set_num_threads(1)
train_world(progress, TrainingCheckpoints(Path(sys.argv[1]), 1))
"""


def test_a_killed_process_loses_at_most_the_steps_since_its_last_save(straight, tmp_path):
    """SIGKILL at some moment after step 4, perhaps while its state is written."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert "4\n" in iter(child.stdout.readline, "")
        child.kill()
    assert child.returncode == -signal.SIGKILL
    outcome, steps, _ = play("world model", tmp_path)
    assert steps[0] in (4, 5)
    assert_same(outcome, straight["world model"])


# -- alignment, which is advanced from outside ----------------------------------------------------------------------

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


# -- the state itself -----------------------------------------------------------------------------------------------


def test_numbers_come_back_with_their_bits_and_types(tmp_path):
    numbers = {"count": 2**60 + 1, "loss": 0.1, "none": float("nan"), "inf": float("-inf"), "errors": [0.1, 0.2]}
    checkpoints = TrainingCheckpoints(tmp_path, 1)
    checkpoints.save(1, {}, numbers)
    step, restored = checkpoints.restore({})
    assert step == 1 and repr(sorted(restored.items())) == repr(sorted(numbers.items()))


def test_every_kind_of_part_goes_back_to_where_it_was(tmp_path):
    network, generator, average = (
        torch.nn.Linear(2, 2),
        torch.Generator().manual_seed(1),
        [torch.ones(2), torch.ones(3)],
    )
    optimizer = torch.optim.AdamW(network.parameters())
    parts = {"network": network, "generator": generator, "average": average, "optimizer": optimizer}

    def go_on() -> list[Tensor]:
        for tensor in average:
            tensor.mul_(torch.rand((), generator=generator))
        optimizer.zero_grad()
        network(torch.rand(2, generator=generator)).sum().backward()
        optimizer.step()
        return [tensor.detach().clone() for tensor in (*network.parameters(), *average)]

    go_on()
    checkpoints = TrainingCheckpoints(tmp_path, 1)
    checkpoints.save(1, parts, {})
    first = go_on()
    second = go_on()
    checkpoints.restore(parts)
    again = [go_on(), go_on()]
    assert all(torch.equal(a, b) for a, b in zip([*first, *second], [*again[0], *again[1]], strict=True))


def test_without_a_checkpoint_the_parts_stay_as_they_are(tmp_path):
    average = [torch.ones(2)]
    for checkpoints in (NO_CHECKPOINTS, TrainingCheckpoints(tmp_path / "nothing", 1)):
        assert checkpoints.restore({"average": average}) is None
    assert torch.equal(average[0], torch.ones(2)) and not (tmp_path / "nothing").exists()
