"""Rolls out the requests of a training run: groups of trajectories, batched over all members of a request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wmpo_ray.core.interfaces import FramesMode, Policy, World
from wmpo_ray.core.observations import Rollout, StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest, Member, RolloutRequest, Trajectories, Videos
from wmpo_ray.rollout.act import SeedsOf, act
from wmpo_ray.rollout.slots import Job, Slots

_KEYS = {"act": "act", "step": "imagine"}  # the keys of the seeds are part of the format


class RequestedRollouts(NamedTuple):
    videos: Videos
    trajectories: Trajectories
    num_chunks: int  # of all trajectories, that were imagined for it


def rollout_request(
    policy: Policy,
    world: World,
    request: RolloutRequest,
    num_chunks: int,
    progress: Callable[[], None] = lambda: None,
    *,
    world_judges: bool = False,
) -> RequestedRollouts:
    """Roll out every member of every group of the request together, `num_chunks` decisions each.

    A pure function of (weights, request): each random number comes from a generator keyed by (run, update, group,
    member, chunk), so the request can be repeated elsewhere with the same result. `progress` is called after each
    chunk. `world_judges`: videos are not needed, so only the policy's observations are rendered.
    """
    starts, chunks = _starts(request), []

    def count() -> None:
        chunks.append(len(starts))
        progress()

    rollout = act(
        policy,
        world,
        starts,
        num_chunks,
        request.temperature,
        member_seeds(request.members),
        frames="last" if world_judges else "all",
        past_end=not world_judges,
        progress=count,
    )
    return _made(rollout, request, starts, sum(chunks))


class SlottedRequests:
    """Rolls out requests in `num_slots` slots, see `slots.py`: the same results, however requests are cut.

    A request that is expected next begins in slots that come free before its own call. `is_wanted`: whether a group of
    a request still is; the others leave at the next chunk.
    """

    def __init__(
        self,
        policy: Policy,
        world: World,
        num_chunks: int,
        num_slots: int,
        *,
        world_judges: bool = False,
        is_wanted: Callable[[RolloutRequest, GroupRequest], bool] = lambda request, group: True,
    ):
        self._parts = (policy, world, num_chunks)
        self._num_slots = num_slots
        self._frames: FramesMode = "last" if world_judges else "all"
        self._is_wanted = is_wanted
        self._expected: deque[RolloutRequest] = deque()  # another thread adds to it
        self.clear()

    def clear(self) -> None:
        """Forget what was begun ahead: the policy has other weights now."""
        self._expected.clear()
        self._slots: Slots | None = None
        self._jobs: dict[int, Job] = {}  # begun ahead, by the number of the request
        self._called: deque[int] = deque(maxlen=64)  # the latest requests: news of them comes too late

    def expect(self, request: RolloutRequest) -> None:
        """The request that will be called for after the present one; may be called in another thread."""
        self._expected.append(request)

    def rollout(self, request: RolloutRequest, progress: Callable[[], None] = lambda: None) -> RequestedRollouts:
        """See `rollout_request`. Raises NothingWantedError once no group of it is wanted."""
        self._called.append(request.request_id)
        if self._slots is None or self._slots.temperature != request.temperature:
            self._slots = Slots(*self._parts, request.temperature, self._num_slots, self._frames)
            self._jobs = {}
        job = self._jobs.pop(request.request_id, None) or self._begin(self._slots, request)
        made = self._slots.finish(job, progress, lambda: self._begin_ahead(request))
        return _made(made, request, _starts(request), job.num_chunks)

    def _begin_ahead(self, present: RolloutRequest) -> None:
        while self._slots is not None and self._expected:
            request = self._expected.popleft()
            same = (request.weights, request.temperature) == (present.weights, present.temperature)
            if same and request.request_id not in self._called:
                self._jobs[request.request_id] = self._begin(self._slots, request)

    def _begin(self, slots: Slots, request: RolloutRequest) -> Job:
        members = request.members

        def seed_of(purpose: str, row: int, chunk: int) -> int:
            return member_seed(members[row], _KEYS[purpose], chunk)

        def is_wanted(row: int) -> bool:
            return self._is_wanted(request, members[row][0])

        job = Job(_starts(request), seed_of, is_wanted)
        slots.jobs.append(job)
        return job


def _starts(request: RolloutRequest) -> tuple[StartState, ...]:
    return tuple(group.start for group, _ in request.members)


def _made(
    rollout: Rollout, request: RolloutRequest, starts: tuple[StartState, ...], num_chunks: int
) -> RequestedRollouts:
    seen, logprobs = rollout.observations, rollout.behavior_logprobs
    assert seen is not None and logprobs is not None
    texts = tuple(start.instruction for start in starts)
    trajectories = Trajectories(
        seen.images, texts, rollout.record, logprobs, rollout.actions, request.version, seen.state
    )
    videos = Videos(
        rollout.frames, texts, rollout.flat_actions, starts, request.members, rollout.success, rollout.lengths
    )
    return RequestedRollouts(videos, trajectories, num_chunks)


def member_seeds(members: Sequence[Member], keys: dict[str, str] | None = None) -> SeedsOf:
    """Seeds keyed by what each member is; `keys`: purpose -> word of the key."""
    words = keys or _KEYS

    def seeds_of(purpose: str, chunk: int) -> list[int]:
        return [member_seed(member, words[purpose], chunk) for member in members]

    return seeds_of


def member_seed(member: Member, word: str, chunk: int) -> int:
    """The seed of one chunk of one member; `word`: of the key."""
    group, place = member
    return seed_for(group.run_seed, word, group.update, group.attempt, place, chunk)
