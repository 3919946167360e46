"""Rolls out the requests of a training run: groups of trajectories, batched over all members of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from wmpo_ray.core.interfaces import Policy, World
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Trajectories, Videos
from wmpo_ray.rollout.act import SeedsOf, act

Member = tuple[GroupRequest, int]
_KEYS = {"act": "act", "step": "imagine"}  # the keys of the seeds are part of the format


class RequestedRollouts(NamedTuple):
    videos: Videos
    trajectories: Trajectories


def rollout_request(
    policy: Policy,
    world: World,
    request: RolloutRequest,
    num_chunks: int,
    progress: Callable[[], None] = lambda: None,
    *,
    world_judges: bool = False,
) -> RequestedRollouts:
    """Roll out every member of every group of the request, `num_chunks` decisions each.

    A pure function of (weights, request): each random number comes from a generator keyed by (run, update, group,
    member, chunk), so the request can be repeated elsewhere with the same result. `progress` is called after each
    chunk. `world_judges`: videos are not needed, so only the policy's observations are rendered.
    """
    members = members_of(request.groups)
    starts = tuple(group.start for group, _ in members)
    rollout = act(
        policy,
        world,
        starts,
        num_chunks,
        request.temperature,
        member_seeds(members),
        frames="last" if world_judges else "all",
        past_end=not world_judges,
        progress=progress,
    )
    seen, logprobs = rollout.observations, rollout.behavior_logprobs
    assert seen is not None and logprobs is not None
    texts = tuple(start.instruction for start in starts)
    trajectories = Trajectories(
        seen.images, texts, rollout.record, logprobs, rollout.actions, request.version, seen.state
    )
    videos = Videos(
        rollout.frames, texts, rollout.flat_actions, starts, request.groups, rollout.success, rollout.lengths
    )
    return RequestedRollouts(videos, trajectories)


def members_of(groups: Sequence[GroupRequest]) -> list[Member]:
    """(group, member) of every trajectory, in order."""
    return [(group, member) for group in groups for member in range(group.group_size)]


def member_seeds(members: Sequence[Member], keys: dict[str, str] | None = None) -> SeedsOf:
    """Seeds keyed by what each member is; `keys`: purpose -> word of the key."""
    words = keys or _KEYS

    def seeds_of(purpose: str, chunk: int) -> list[int]:
        word = words[purpose]
        return [seed_for(group.run_seed, word, group.update, group.attempt, i, chunk) for group, i in members]

    return seeds_of
