"""Slots and admission: conservation, issue order, and independence of the order of arrival."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo_ray.algorithms.group_queue import GroupQueue, NothingAdmittedError
from wmpo_ray.config.run import Config, FilterConfig
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import Group, GroupRequest, RolloutRequest, Stored, Verdict

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
    return Group(
        request.groups[i], request.version, success, np.array([8, 8]), 0, (Stored(f"ref-{request.request_id}", (0, 2)),)
    )


def test_every_verdict_has_its_reason():
    config = make_config(staleness=1)
    config = config.model_copy(update={"filter": FilterConfig(max_staleness=1, min_mean=0.3, max_mean=0.7)})

    def verdict(success: np.ndarray, version: int) -> Verdict | None:
        queue, request = GroupQueue(config), make_request(0, 1, version)
        queue.issue(request.groups)
        return queue.settle(make_group(request, 0, success), learner_version=4)

    assert verdict(MIXED, 3) is Verdict.ADMIT
    assert verdict(UNIFORM, 4) is Verdict.UNIFORM
    assert verdict(~UNIFORM, 4) is Verdict.UNIFORM
    assert verdict(MIXED, 2) is Verdict.STALE
    assert verdict(np.array([True, False, False, False]), 4) is Verdict.OUTSIDE


def test_members_of_unknown_outcome_do_not_make_a_group_mixed():
    queue, request = GroupQueue(make_config(groups=1)), make_request(0, 3)
    queue.issue(request.groups)

    def settle(i: int, success: list[bool], known: list[bool]) -> Verdict | None:
        group = make_group(request, i, np.array(success))
        group.known = np.array(known)
        group.num_refuted = known.count(False)
        return queue.settle(group, 0)

    assert settle(0, [False, False], [True, False]) is Verdict.UNDECIDED
    assert settle(1, [False, False], [False, False]) is Verdict.UNDECIDED
    assert settle(2, [True, False], [True, True]) is Verdict.ADMIT
    metrics = queue.take_batch(0).metrics
    assert metrics["imagined/unknown_share"] == 0.5 and metrics["queue/undecided"] == 2
    assert metrics["imagined/success_rate"] == pytest.approx(4 / 6), "what the reward model said"
    assert metrics["imagined/verified_success_rate"] == pytest.approx(1 / 3), "among the known outcomes"


def test_a_batch_waits_for_everything_issued_before_it():
    queue = GroupQueue(make_config(groups=2))
    request = make_request(0, 3)
    queue.issue(request.groups)
    queue.settle(make_group(request, 1, MIXED), 0)
    queue.settle(make_group(request, 2, MIXED), 0)
    assert queue.take_batch(0) is None, "group 0 is not settled yet and might be admitted first"
    queue.settle(make_group(request, 0, MIXED), 0)
    batch = queue.take_batch(0)
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
            while queue.has_free_slot(0) and len(flying) < order.limit:
                request = make_request(issued * size, size)
                queue.issue(request.groups)
                flying.append(request)
                issued += 1
            if batch := queue.take_batch(0):
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


@settings(max_examples=100, deadline=None)
@given(outcomes=st.lists(st.booleans(), min_size=8, max_size=8), order=st.permutations(range(14)))
def test_what_is_known_of_a_batch_before_it_is_full_stays_its_beginning(outcomes, order):
    """In whatever order groups are settled, and one of them is given up."""
    queue, request = GroupQueue(make_config(groups=5)), make_request(0, 14)
    outcomes = [*outcomes, *[True] * 6]
    queue.issue(request.groups)
    known: list[list[int]] = []
    for place in order:
        if place == 3:
            queue.quarantine(request.groups[place])
        else:
            queue.settle(make_group(request, place, MIXED if outcomes[place] else UNIFORM), 0)
        known.append([group.request.attempt for group in queue.first_admitted(0)])
    batch = queue.take_batch(0)
    attempts = [group.request.attempt for group in batch.groups]
    assert all(attempts[: len(each)] == each for each in known) and known[-1] == attempts
    assert queue.first_admitted(0) == [], "the update is closed"
    settled = [set(order[: count + 1]) for count in range(14)]
    for each, done in zip(known, settled, strict=True):
        first_open = min(set(range(14)) - done, default=14)
        wanted = [place for place in range(first_open) if outcomes[place] and place != 3]
        assert each == wanted[:5], "as much as is certain"


def test_an_update_is_closed_by_taking_its_batch():
    queue = GroupQueue(make_config(groups=2))
    assert queue.has_free_slot(0)
    request = make_request(0, 3)
    queue.issue(request.groups)
    assert not queue.has_free_slot(0)
    for i in range(2):
        queue.settle(make_group(request, i, MIXED), 0)
    assert queue.is_complete(0)
    batch = queue.take_batch(0)
    assert batch.surplus == [(0, 2)] and batch.metrics["queue/surplus"] == 1
    assert queue.settle(make_group(request, 2, MIXED), 0) is None, "nobody waits for it any more"
    assert queue.take_batch(0) is None and not queue.is_complete(0)


def test_a_group_is_settled_once():
    queue = GroupQueue(make_config(groups=2))
    request = make_request(0, 2)
    queue.issue(request.groups)
    assert queue.settle(make_group(request, 0, MIXED), 0) is Verdict.ADMIT
    assert queue.settle(make_group(request, 0, MIXED), 0) is None
    assert queue.settle(make_group(make_request(5, 1), 0, MIXED), 0) is None, "never issued"
    assert not queue.is_complete(0)


def test_updates_have_issue_orders_of_their_own():
    queue = GroupQueue(make_config(groups=1, staleness=1))
    first, second = make_request(0, 1), make_request(0, 1, update=1)
    for request in (first, second):
        queue.issue(request.groups)
        queue.settle(make_group(request, 0, MIXED), 0)
    assert queue.take_batch(1).groups[0].request is second.groups[0]
    assert queue.take_batch(0).groups[0].request is first.groups[0]


def test_groups_imagined_ahead_are_part_of_no_larger_batch():
    config = make_config(groups=10)
    ahead = config.model_copy(update={"rollout": config.rollout.model_copy(update={"speculation": 0.2})})
    queue = GroupQueue(ahead)
    request = make_request(0, 11)
    queue.issue(request.groups)
    assert queue.has_free_slot(0)
    for i in range(11):
        queue.settle(make_group(request, i, MIXED), 0)
    assert len(queue.take_batch(0).groups) == 10


def test_a_group_that_is_given_up_is_passed_over():
    queue = GroupQueue(make_config(groups=1))
    request = make_request(0, 2)
    queue.issue(request.groups)
    queue.settle(make_group(request, 1, MIXED), 0)
    assert queue.take_batch(0) is None
    assert queue.quarantine(request.groups[0]) and not queue.quarantine(request.groups[0])
    batch = queue.take_batch(0)
    assert [group.request.attempt for group in batch.groups] == [1]
    assert batch.metrics["queue/quarantined"] == 1 and batch.metrics["imagined/trajectories"] == 2


def test_the_attempt_cap_tells_the_outcomes():
    queue = GroupQueue(make_config(groups=2, max_attempts=4))
    request = make_request(0, 4)
    queue.issue(request.groups)
    for i in range(4):
        queue.settle(make_group(request, i, ~UNIFORM), 0)
    queue.check_attempts(1)
    with pytest.raises(NothingAdmittedError, match=r"0/2: 4.*reward model never accepts"):
        queue.check_attempts(0)


def test_without_dynamic_sampling_every_group_is_taken():
    config = make_config(groups=2).model_copy(update={"filter": FilterConfig(dynamic_sampling=False)})
    queue, request = GroupQueue(config), make_request(0, 2)
    queue.issue(request.groups)
    verdicts = [queue.settle(make_group(request, i, UNIFORM), 0) for i in range(2)]
    assert verdicts == [Verdict.ADMIT, Verdict.ADMIT] and queue.take_batch(0).metrics["queue/admit"] == 2


def test_each_of_several_tasks_is_counted_on_its_own():
    queue, request = GroupQueue(make_config(groups=2)), make_request(0, 4)
    starts = [replace(START, task=task) for task in ("a", "b", "a", "b")]
    groups = tuple(replace(group, start=start) for group, start in zip(request.groups, starts, strict=True))
    request = replace(request, groups=groups)
    queue.issue(groups)
    for i, success in enumerate([MIXED, UNIFORM, UNIFORM, MIXED]):
        queue.settle(make_group(request, i, success), 0)
    metrics = queue.take_batch(0).metrics
    assert (metrics["task/a/admitted_groups"], metrics["task/a/refused_groups"], metrics["task/a/keep_rate"]) == (
        1,
        1,
        0.5,
    )
    assert metrics["task/b/training_success_rate"] == 0.75
    plain = GroupQueue(make_config(groups=1))
    plain.issue(make_request(0, 1).groups)
    plain.settle(make_group(make_request(0, 1), 0, MIXED), 0)
    assert not [key for key in plain.take_batch(0).metrics if key.startswith("task/")]
