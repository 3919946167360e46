"""Each of several tasks has its share of any number of groups, by weight or by what its groups have taught."""

from itertools import pairwise

import numpy as np
import pytest

from wmpo_ray.algorithms.task_order import by_task, signal_shares, task_signal

TASKS = ["a", "b"] * 10
EQUAL = {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("share", [0.5, 0.25, 0.9])
def test_a_task_has_its_share_of_every_beginning(share):
    order = by_task(np.random.default_rng(0).permutation(20), TASKS, {"a": 1 - share, "b": share})
    of_b = np.cumsum([TASKS[start] == "b" for start in order])
    assert np.abs(of_b - share * np.arange(1, 21)).max() <= 1


def test_equal_shares_of_equally_many_take_each_start_once_in_its_own_tasks_order():
    shuffled = np.random.default_rng(1).permutation(20)
    order = by_task(shuffled, TASKS, EQUAL)
    assert sorted(order) == list(range(20))
    for task in EQUAL:
        assert [s for s in order if TASKS[s] == task] == [s for s in shuffled if TASKS[s] == task]


def test_a_task_without_starts_leaves_its_share_to_the_others():
    assert set(by_task(np.arange(4), ["a"] * 4, EQUAL)) == set(range(4))


def test_the_signal_is_that_of_a_binomial_group():
    p = 4 / 12
    assert task_signal(3, 7, 8) == pytest.approx(1 - p**8 - (1 - p) ** 8)
    falling = [task_signal(successes, 40 - successes, 8) for successes in (20, 34, 38, 40)]
    assert all(more > less for more, less in pairwise(falling))


def test_a_solved_task_gives_way_and_a_forgotten_one_is_asked_again():
    outcomes = [(0, 8, 0)] * 30 + [(1, 4, 4)]
    shares = signal_shares(EQUAL, TASKS, outcomes, 8)
    assert shares["a"] < shares["b"] / 10
    assert signal_shares(EQUAL, TASKS, [], 8) == pytest.approx({"a": shares["b"], "b": shares["b"]}, rel=0.01)
