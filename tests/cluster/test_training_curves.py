"""The curve of a supervised training: few points, none twice, the last step among them."""

from __future__ import annotations

import pytest

from cluster.events.run_log import MAX_POINTS, TrainingCurve
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.tracker import Trackers


def curve(folder, num_steps: int) -> TrainingCurve:
    return TrainingCurve(Trackers(JsonlTracker(folder)), "policy", num_steps)


def steps(folder) -> list[int]:
    return [row["step"] for row in JsonlTracker.read(folder, "policy")]


def report(to: TrainingCurve, first: int, last: int, every: int = 10) -> None:
    for step in [*range(first - first % every + every, last, every), last]:
        to.log(step, {"loss": 1 / step})


@pytest.mark.parametrize("num_steps", [1, 7, 200, 1999, 20_003])
def test_a_curve_has_few_points_and_ends_with_the_last_step(tmp_path, num_steps):
    report(curve(tmp_path, num_steps), 0, num_steps)
    assert steps(tmp_path)[-1] == num_steps and len(steps(tmp_path)) <= MAX_POINTS + 1
    assert len(steps(tmp_path)) >= min(MAX_POINTS // 2, num_steps // 10)


@pytest.mark.parametrize("saved", [0, 12, 60, 2890])
def test_a_training_that_goes_on_leaves_the_curve_of_an_undisturbed_one(tmp_path, saved):
    (tmp_path / "straight").mkdir()
    report(curve(tmp_path / "straight", 3000), 0, 3000)
    report(curve(tmp_path, 3000), 0, 2900)
    again = curve(tmp_path, 3000)
    again.restart(saved)
    report(again, saved, 3000)
    assert steps(tmp_path) == steps(tmp_path / "straight")


def test_a_lost_worker_repeats_no_step(tmp_path):
    one = curve(tmp_path, 100)
    report(one, 0, 50)
    one.restart(20)
    one.log(20, {})  # nothing has been trained since
    report(one, 20, 100)
    assert steps(tmp_path) == list(range(10, 101, 10))
