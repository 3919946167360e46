"""Slots and admission: conservation, issue order, and independence of the order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo_ray.config import Config, FilterConfig
from wmpo_ray.group_filter import judge_group
from wmpo_ray.group_queue import GroupQueue, NothingAdmittedError
from wmpo_ray.types import Group, GroupRequest, RolloutRequest, StartState, Verdict

START = StartState(np.zeros((1, 2, 2, 3), np.uint8), "go")
MIXED, UNIFORM = np.array([True, False]), np.array([True, True])


def make_config(groups: int = 4, staleness: int = 0, max_attempts: int = 64) -> Config:
    return Config.model_validate(
        {
            "rollout": {"groups_per_update": groups, "group_size": 2, "max_attempts": max_attempts},
            "grpo": {"minibatch_trajectories": 2},
            "filter": {"max_staleness": staleness},
        }
    )


def make_request(first: int, count: int, version: int = 0, update: int = 0) -> RolloutRequest:
    groups = tuple(GroupRequest(update, a, 0, START, 2, 0) for a in range(first, first + count))
    return RolloutRequest(first, groups, version, 1.0)


def make_group(request: RolloutRequest, i: int, success: np.ndarray) -> Group:
    return Group(request.groups[i], request.version, success, np.array([8, 8]), 0, f"ref-{request.request_id}", (0, 2))


def test_every_verdict_has_its_reason():
    config = FilterConfig(max_staleness=1, min_mean=0.3, max_mean=0.7)
    assert judge_group(MIXED, 3, 4, config) is Verdict.ADMIT
    assert judge_group(UNIFORM, 4, 4, config) is Verdict.UNIFORM
    assert judge_group(~UNIFORM, 4, 4, config) is Verdict.UNIFORM
    assert judge_group(MIXED, 2, 4, config) is Verdict.STALE
    assert judge_group(np.array([True, False, False, False]), 4, 4, config) is Verdict.OUTSIDE


def test_a_batch_waits_for_everything_issued_before_it():
    queue = GroupQueue(make_config(groups=2))
    request = make_request(0, 3)
    queue.issue(request)
    queue.settle(make_group(request, 1, MIXED), 0)
    queue.settle(make_group(request, 2, MIXED), 0)
    assert queue.take_batch() is None, "group 0 is not settled yet and might be admitted first"
    queue.settle(make_group(request, 0, MIXED), 0)
    batch = queue.take_batch()
    assert [group.request.attempt for group in batch.groups] == [0, 1]


@settings(max_examples=200, deadline=None)
@given(
    outcomes=st.lists(st.booleans(), min_size=40, max_size=40),
    size=st.integers(1, 3),
    in_flight=st.integers(1, 5),
    data=st.data(),
)
def test_the_batch_and_the_number_issued_do_not_depend_on_the_order_of_arrival(outcomes, size, in_flight, data):
    """However many actors there are and whichever answers first: the same groups, the same number of requests."""
    outcomes = [*outcomes, *[True] * 40]

    def play(order) -> tuple[list[int], int]:
        queue, flying, issued = GroupQueue(make_config(groups=6)), [], 0
        while True:
            while queue.num_free_slots > 0 and len(flying) < order.limit:
                request = make_request(issued * size, size)
                queue.issue(request)
                flying.append(request)
                issued += 1
            if batch := queue.take_batch():
                return [group.request.attempt for group in batch.groups], issued
            request = flying.pop(order.pick(len(flying)))
            for i, group in enumerate(request.groups):
                queue.settle(make_group(request, i, MIXED if outcomes[group.attempt] else UNIFORM), 0)

    class InOrder:
        limit = 1

        @staticmethod
        def pick(_count: int) -> int:
            return 0

    class AnyOrder:
        limit = in_flight

        @staticmethod
        def pick(count: int) -> int:
            return data.draw(st.integers(0, count - 1))

    expected = [a for a, mixed in enumerate(outcomes) if mixed][:6]
    assert play(InOrder)[0] == expected
    assert play(AnyOrder) == play(InOrder)


def test_slots_are_held_until_the_weights_are_out():
    queue = GroupQueue(make_config(groups=2))
    assert queue.num_free_slots == 2
    request = make_request(0, 2)
    queue.issue(request)
    assert queue.num_free_slots == 0
    for i in range(2):
        queue.settle(make_group(request, i, MIXED), 0)
    assert queue.take_batch() is not None and queue.num_free_slots == 0
    queue.release(1)
    assert queue.num_free_slots == 2


def test_late_groups_of_an_update_that_is_over_are_counted_as_surplus():
    queue = GroupQueue(make_config(groups=1))
    first, second = make_request(0, 1), make_request(1, 1)
    queue.issue(first)
    queue.issue(second)
    queue.settle(make_group(first, 0, MIXED), 0)
    queue.take_batch()
    queue.release(1)
    assert queue.is_surplus(second)
    assert queue.verdicts[Verdict.SURPLUS] == 1


def test_staleness_one_keeps_a_group_for_exactly_one_more_update():
    queue = GroupQueue(make_config(groups=1, staleness=1))
    first, second = make_request(0, 1, version=0), make_request(0, 1, version=0, update=1)
    queue.issue(first)
    queue.issue(second)
    for request in (first, second):
        queue.settle(make_group(request, 0, MIXED), 0)
    assert queue.take_batch().groups[0].request is first.groups[0]
    queue.release(1)
    assert queue.take_batch().groups[0].request is second.groups[0]
    third = make_request(1, 1, version=0, update=1)
    queue.issue(third)
    queue.release(2)
    assert queue.settle(make_group(third, 0, MIXED), 2) is Verdict.SURPLUS


def test_the_attempt_cap_tells_the_outcomes():
    queue = GroupQueue(make_config(groups=2, max_attempts=4))
    request = make_request(0, 4)
    queue.issue(request)
    for i in range(4):
        queue.settle(make_group(request, i, ~UNIFORM), 0)
    queue.check_attempts(3)
    with pytest.raises(NothingAdmittedError, match=r"0/2: 4.*reward model never accepts"):
        queue.check_attempts(4)
