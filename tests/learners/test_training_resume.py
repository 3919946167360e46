"""The supervised trainings: killed at any step and run again, they end with the weights of an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learners.supervised.training_state import NO_CHECKPOINTS, TrainingCheckpoints
from tests.support.documents import ROOT
from tests.support.resumed_trainings import STEPS, TRAININGS, Outcome

EVERY = 3


class Killed(BaseException):
    """What nothing in a training survives."""


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
from learners.supervised.training_state import TrainingCheckpoints
from tests.support.resumed_trainings import train_world

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
