"""Every record that crosses a process.

M trajectories, G of them in a group, B rows in a batch, N chunks per trajectory, K actions and frames per chunk, T = N*K,
D action dimensions, L log-probabilities per chunk (K*D for a policy of tokens, S*K*D for a denoising path of S steps).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from wmpo_ray.core.observations import StartState


class WeightVersion(NamedTuple):
    """Identifies policy weights: the number of updates, and their hash."""

    num_updates: int
    digest: str


@dataclass(frozen=True)
class GroupRequest:
    """One group to imagine: a pure function of (weights, start, seed)."""

    update: int  # the update that this group is meant for
    attempt: int  # its place in the issue order of that update
    start_index: int
    start: StartState
    group_size: int
    run_seed: int

    @property
    def key(self) -> tuple[int, int]:
        return (self.update, self.attempt)


Member = tuple[GroupRequest, int]  # the group, and the place of a trajectory in it


class Piece(NamedTuple):
    """The members of one group that one request rolls out."""

    group: GroupRequest
    members: tuple[int, int]  # [first, last)
    rows: tuple[int, int]  # of the request's trajectories


@dataclass(frozen=True)
class RolloutRequest:
    """What one actor imagines in one call, under exactly one weight version: whole groups, or a part of their members."""

    request_id: int
    groups: tuple[GroupRequest, ...]
    version: int
    temperature: float
    weights: str = ""  # hash of the weights to imagine with
    kept: int | None = None  # the one group that counts, where the others only fill the batch; None: all of them
    part: tuple[int, int] | None = None  # the members [first, last), counted through all groups; None: all of them

    @property
    def members(self) -> tuple[Member, ...]:
        """One for each trajectory, in order."""
        everyone = tuple((group, member) for group in self.groups for member in range(group.group_size))
        return everyone if self.part is None else everyone[slice(*self.part)]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What this request holds of each group that counts."""
        sizes = [group.group_size for group in self.groups]
        begin, end = self.part or (0, sum(sizes))
        found, before = [], 0
        for place, group in enumerate(self.groups):
            first, last = max(begin, before), min(end, before + sizes[place])
            if first < last and self.kept in (None, place):
                found.append(Piece(group, (first - before, last - before), (first - begin, last - begin)))
            before += sizes[place]
        return tuple(found)

    @property
    def kept_groups(self) -> tuple[GroupRequest, ...]:
        """The groups that count."""
        return tuple(piece.group for piece in self.pieces)

    @property
    def num_trajectories(self) -> int:
        return self.part[1] - self.part[0] if self.part else sum(group.group_size for group in self.groups)

    def cut(self, size: int) -> list[RolloutRequest]:
        """Requests for `size` of its trajectories each, in order, numbered from its own number + 1."""
        ends = range(size, self.num_trajectories + 1, size)
        return [self._share(number, end - size, end) for number, end in enumerate(ends, self.request_id + 1)]

    def _share(self, number: int, first: int, last: int) -> RolloutRequest:
        group_size = self.groups[0].group_size  # the same for all groups of a run
        begin, end = first // group_size, -(-last // group_size)
        offset = begin * group_size
        part = None if (first, last) == (offset, end * group_size) else (first - offset, last - offset)
        return replace(self, request_id=number, groups=self.groups[begin:end], part=part)

    def alone(self, place: int) -> RolloutRequest:
        """The same batch with one group at every place: whether this group is what crashes its worker.

        The group keeps its place and the batch its shape, so its trajectories stay the same to the last bit.
        """
        return replace(self, groups=(self.groups[place],) * len(self.groups), kept=place)


@dataclass(frozen=True)
class Trajectories:
    """M trajectories as the learner needs them; the driver only ever holds a reference."""

    images: dict[str, np.ndarray]  # camera -> [M, N, H, W, 3] uint8: what the policy saw at each decision
    instructions: tuple[str, ...]  # [M]
    record: dict[str, np.ndarray]  # [M, N, ...] each: what `Policy.log_prob` needs of a decision
    behavior_logprobs: np.ndarray  # [M, N, L] float32
    actions: np.ndarray  # [M, N, K, D] float32
    version: int
    state: np.ndarray | None = None  # [M, N, S] float32 proprioception

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def frames(self) -> np.ndarray:
        """Images [M, N, H, W, 3] of the main camera."""
        return next(iter(self.images.values()))

    @classmethod
    def joined(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """Those of one version, one after the other."""
        first, states = parts[0], [part.state for part in parts if part.state is not None]
        if len(parts) == 1:
            return first
        return cls(
            {camera: np.concatenate([part.images[camera] for part in parts]) for camera in first.images},
            tuple(text for part in parts for text in part.instructions),
            {name: np.concatenate([part.record[name] for part in parts]) for name in first.record},
            np.concatenate([part.behavior_logprobs for part in parts]),
            np.concatenate([part.actions for part in parts]),
            first.version,
            np.concatenate(states) if states else None,
        )

    def rows(self, start: int, stop: int) -> Trajectories:
        cut = slice(start, stop)
        return Trajectories(
            {camera: images[cut] for camera, images in self.images.items()},
            self.instructions[cut],
            {name: values[cut] for name, values in self.record.items()},
            self.behavior_logprobs[cut],
            self.actions[cut],
            self.version,
            None if self.state is None else self.state[cut],
        )


@dataclass(frozen=True)
class Videos:
    """M videos for the judge, freed once they are scored."""

    frames: np.ndarray | None  # [M, T+1, H, W, 3] uint8, the first one is the start; None where the world judges
    instructions: tuple[str, ...]  # [M]
    actions: np.ndarray  # [M, T, D] float32, for a second world
    starts: tuple[StartState, ...]  # [M]
    members: tuple[Member, ...] = ()  # [M]: what was requested; empty where nothing was
    success: np.ndarray | None = None  # [M] bool: what the world said of the outcome, if it knows
    lengths: np.ndarray | None = None  # [M] int64: actions executed before the end

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def horizon(self) -> int:
        return self.actions.shape[1]


Disputed = Literal["failure", "unknown"]  # what a success is that a second world does not confirm


@dataclass(frozen=True)
class Scores:
    """The one decision about each video; it drives reward, finish step and metric alike."""

    success: np.ndarray  # [M] bool
    finish_step: np.ndarray  # [M] int64: actions executed until the decision, T where none fell before
    probability: np.ndarray  # [M] float32: highest window probability
    refuted: np.ndarray | None = None  # [M] bool: a success that the second world model did not confirm
    known: np.ndarray | None = (
        None  # [M] bool: False where the outcome is unknown and must not be learned from; None: all
    )


class Verdict(enum.Enum):
    """The verdict on a group. Every kind of rejection is counted by name."""

    ADMIT = "admit"
    UNIFORM = "uniform"  # all outcomes equal: no advantage
    UNDECIDED = "undecided"  # the known outcomes are equal, and others of the group are unknown
    OUTSIDE = "outside"  # success rate outside [filter.min_mean, filter.max_mean]
    STALE = "stale"  # generated under weights that are too old
    SURPLUS = "surplus"  # not needed for the update it was issued for
    QUARANTINED = "quarantined"  # it crashed its worker every time


class Stored(NamedTuple):
    """Rows of a `Trajectories` that some request made."""

    trajectories: object  # reference on it
    rows: tuple[int, int]  # [first, last)


@dataclass
class Group:
    """A scored group: what the filter judges and the queue keeps."""

    request: GroupRequest
    version: int
    success: np.ndarray  # [G] bool
    finish_step: np.ndarray  # [G] int64
    num_refuted: int
    pieces: tuple[Stored, ...]  # its members, in order
    known: np.ndarray | None = None  # [G] bool: False where the outcome is unknown; None: all are known

    @property
    def outcomes(self) -> np.ndarray:
        """Success of the members whose outcome is known."""
        return self.success if self.known is None else self.success[self.known]


class Frames(Protocol):
    """Frames [M, T+1, H, W, 3] uint8 of M episodes that are read as they are indexed (see `wmpo_ray.data.episodes`).

    Indexed by episode, or by episode and step, as an array is; the last real frame repeats after an episode's end.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...

    def select(self, rows: np.ndarray) -> Frames:
        """Those of the episodes `rows` [m] int64; reads nothing."""


@dataclass(frozen=True)
class Episodes:
    """M episodes recorded in a real environment; what the trajectory store keeps."""

    frames: np.ndarray | Frames  # [M, T+1, H, W, 3] uint8; the last real frame repeats after the end
    actions: np.ndarray  # [M, T, D] float32 in [-1, 1]
    lengths: np.ndarray  # [M] int64: steps until success, T otherwise
    success: np.ndarray  # [M] bool, decided by the environment
    instructions: tuple[str, ...]  # [M]
    seeds: np.ndarray  # [M] int64: the environment's start states
    failures: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [M] bool, if the environment reports them
    corrections: np.ndarray | None = (
        None  # [M, T] bool: steps that an operator made in place of the policy; None: no step
    )

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, index) -> Episodes:
        """The episodes at `index` (integers, a slice or a boolean mask); frames that are not in memory stay unread."""
        chosen = np.arange(len(self))[index]
        return Episodes(
            self.frames[chosen] if isinstance(self.frames, np.ndarray) else self.frames.select(chosen),
            self.actions[chosen],
            self.lengths[chosen],
            self.success[chosen],
            tuple(self.instructions[i] for i in chosen),
            self.seeds[chosen],
            {name: flags[chosen] for name, flags in self.failures.items()},
            None if self.corrections is None else self.corrections[chosen],
        )
