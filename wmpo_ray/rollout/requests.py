"""Rolls out the requests of a training run: groups of trajectories, batched over all members of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from wmpo_ray.core.interfaces import FramesMode, Policy, World
from wmpo_ray.core.observations import Rollout, StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest, Member, RolloutRequest, Trajectories, Videos
from wmpo_ray.rollout.act import SeedsOf, act
from wmpo_ray.rollout.slots import act_in_slots

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
    num_slots: int = 0,
    is_wanted: Callable[[GroupRequest], bool] = lambda group: True,
) -> RequestedRollouts:
    """Roll out every member of every group of the request, `num_chunks` decisions each.

    A pure function of (weights, request): each random number comes from a generator keyed by (run, update, group,
    member, chunk), so the request can be repeated elsewhere with the same result. `progress` is called after each
    chunk. `world_judges`: videos are not needed, so only the policy's observations are rendered. `num_slots`: how many
    are rolled out at a time, see `slots.py`; 0: all together. With slots, what belongs to groups that are not wanted any
    more is left out. Raises NothingWantedError once that holds for all.
    """
    members = request.members
    starts = tuple(group.start for group, _ in members)
    frames: FramesMode = "last" if world_judges else "all"
    many = (policy, world, starts, num_chunks, request.temperature)
    if num_slots:

        def seed_of(purpose: str, row: int, chunk: int) -> int:
            return _seed(members[row], _KEYS[purpose], chunk)

        def wanted(row: int) -> bool:
            return is_wanted(members[row][0])

        rollout = act_in_slots(*many, seed_of, num_slots, frames=frames, progress=progress, is_wanted=wanted)
    else:
        rollout = act(*many, member_seeds(members), frames=frames, past_end=not world_judges, progress=progress)
    return _made(rollout, request, starts)


def _made(rollout: Rollout, request: RolloutRequest, starts: tuple[StartState, ...]) -> RequestedRollouts:
    seen, logprobs = rollout.observations, rollout.behavior_logprobs
    assert seen is not None and logprobs is not None
    texts = tuple(start.instruction for start in starts)
    trajectories = Trajectories(
        seen.images, texts, rollout.record, logprobs, rollout.actions, request.version, seen.state
    )
    videos = Videos(
        rollout.frames, texts, rollout.flat_actions, starts, request.members, rollout.success, rollout.lengths
    )
    return RequestedRollouts(videos, trajectories)


def member_seeds(members: Sequence[Member], keys: dict[str, str] | None = None) -> SeedsOf:
    """Seeds keyed by what each member is; `keys`: purpose -> word of the key."""
    words = keys or _KEYS

    def seeds_of(purpose: str, chunk: int) -> list[int]:
        return [_seed(member, words[purpose], chunk) for member in members]

    return seeds_of


def _seed(member: Member, word: str, chunk: int) -> int:
    group, place = member
    return seed_for(group.run_seed, word, group.update, group.attempt, place, chunk)
