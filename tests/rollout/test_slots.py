"""A trajectory is the same to the last bit alone, in company and in another slot, whatever request it is part of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.implementations import make_flow, make_tiny
from tests.support.small_world import EMBEDDED, scene_starts, small_world_model
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Trajectories
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.rollout.requests import RequestedRollouts, SlottedRequests
from wmpo_ray.rollout.slots import NothingWantedError

CHUNKS, HORIZON, SLOTS = 4, 16, 4


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def world(precision):
    return small_world_model(EMBEDDED.model_copy(update={"precision": precision}), num_steps=1)


@pytest.fixture(scope="module")
def judged(world) -> JudgedWorld:
    """With a reward model that ends some trajectories early, at different times."""
    model = VideoMAERewardModel.create(NetworkRewardConfig(clip_length=4), 16, INSTRUCTIONS, seed=3)
    with torch.no_grad():
        model.network.classifier.weight.normal_(0, 4, generator=torch.Generator().manual_seed(0))
    made = slotted(world).rollout(make_request())
    found = model.probabilities(made.videos.frames, made.videos.instructions)
    model.threshold = float(np.quantile(found.max(1), 0.4))
    return JudgedWorld(world, model, 2, HORIZON)


def make_request(count: int = 3, size: int = 4) -> RolloutRequest:
    groups = tuple(GroupRequest(0, i, i, start, size, 7) for i, start in enumerate(scene_starts(count)))
    return RolloutRequest(1, groups, 0, 1.0)


def bits(trajectories: Trajectories, row: int) -> bytes:
    record = [trajectories.record[name] for name in sorted(trajectories.record)]
    parts = (trajectories.frames, *record, trajectories.behavior_logprobs, trajectories.actions)
    return b"".join(np.ascontiguousarray(part[row]).tobytes() for part in parts)


def slotted(world, make_policy=make_tiny, **options) -> SlottedRequests:
    judges = isinstance(world, JudgedWorld)
    return SlottedRequests(make_policy(), world, CHUNKS, SLOTS, world_judges=judges, **options)


def by_member(request: RolloutRequest, made: RequestedRollouts) -> dict[tuple[int, int], bytes]:
    """(attempt, member) -> all that is learned from, and how it ended."""
    ends = made.videos.lengths, made.videos.success if made.videos.success is not None else made.videos.lengths
    return {
        (group.attempt, member): bits(made.trajectories, row) + bytes([int(end[row]) for end in ends])
        for row, (group, member) in enumerate(request.members)
    }


def rolled(world, request: RolloutRequest, progress=lambda: None, **options) -> dict[tuple[int, int], bytes]:
    return by_member(request, slotted(world, **options).rollout(request, progress))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 12])
def test_the_cut_of_the_requests_changes_no_bit(judged, size):
    """Whole groups, parts of groups and groups with parts of others; slots are refilled as trajectories end."""
    whole = make_request()
    together, apart = rolled(judged, whole), {}
    for request in whole.cut(size):
        assert request.num_trajectories == size == len(request.members)
        apart |= rolled(judged, request)
    assert apart == together and len(together) == 12


@pytest.mark.parametrize("make_policy", [make_tiny, make_flow])
def test_the_slot_and_the_company_change_no_bit(world, make_policy):
    whole = make_request()
    together = rolled(world, whole, make_policy=make_policy)
    backwards = replace(whole, groups=whole.groups[::-1])
    assert rolled(world, backwards, make_policy=make_policy) == together
    alone = rolled(world, replace(whole, groups=whole.groups[1:2]), make_policy=make_policy)
    assert all(together[key] == value for key, value in alone.items()) and len(alone) == 4


def test_nothing_is_imagined_for_slots_that_nobody_needs(judged):
    calls = []
    made = slotted(judged).rollout(make_request(), lambda: calls.append(1))
    decided = -(-made.videos.lengths // 4)
    assert 0 < made.videos.success.sum() < 12 and decided.min() < CHUNKS
    assert -(-int(decided.sum()) // SLOTS) <= len(calls) < CHUNKS * 12 // SLOTS


def test_what_is_expected_begins_where_slots_come_free_and_stays_the_same(judged):
    """Three requests one after the other take fewer chunks if each is known before, and no bit changes."""
    requests, whole = make_request().cut(4), rolled(judged, make_request())
    calls: dict[bool, int] = {}
    for is_told in (False, True):
        actor, found, chunks = slotted(judged), {}, []
        for request, following in zip(requests, [*requests[1:], None], strict=True):
            if is_told and following is not None:
                actor.expect(following)
            found |= by_member(request, actor.rollout(request, lambda chunks=chunks: chunks.append(1)))
        assert found == whole
        calls[is_told] = len(chunks)
    assert calls[True] < calls[False]


def test_news_that_comes_too_late_or_for_other_weights_begins_nothing(judged):
    requests, chunks = make_request().cut(4), []
    plain = slotted(judged)
    for request in requests[:2]:
        plain.rollout(request, lambda: chunks.append(1))
    actor, others = slotted(judged), []
    actor.rollout(requests[0], lambda: others.append(1))
    actor.expect(requests[0])
    actor.expect(replace(requests[2], weights="other"))
    actor.rollout(requests[1], lambda: others.append(1))
    assert len(others) == len(chunks)


def test_what_is_not_wanted_leaves_at_the_next_chunk_and_the_rest_stays_the_same(world):
    together, dropped, calls = rolled(world, make_request()), set(), []

    def count() -> None:
        calls.append(1)
        if len(calls) == 2:
            dropped.add(1)

    left = rolled(world, make_request(), count, is_wanted=lambda request, group: group.attempt not in dropped)
    assert all(left[key] == value for key, value in together.items() if key[0] != 1)
    assert len(calls) == 2 * CHUNKS
    with pytest.raises(NothingWantedError):
        rolled(world, make_request(), is_wanted=lambda request, group: False)


def test_the_policy_acts_the_same_beside_any_others(precision):
    policy = make_tiny()
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)

    def decided(rows: list[int]) -> list[bytes]:
        observation = Observation.of(frames[rows], [INSTRUCTIONS[0]] * 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            decision = policy.act(observation, 1.0, [10 + row for row in rows])
        return [
            decision.record["tokens"][i].numpy().tobytes() + decision.logprobs[i].float().numpy().tobytes()
            for i in range(4)
        ]

    first = decided([0, 1, 2, 3])
    assert decided([3, 3, 1, 0]) == [first[3], first[3], first[1], first[0]]
