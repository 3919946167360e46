"""Where rollouts begin, how long and how many they are, and which of them are learned from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.core.section import Count, Positive, Section, Share


class RolloutConfig(Section):
    chunk_length: Count = 4  # K
    group_size: Annotated[int, Field(le=10**4)] = 8  # G
    groups_per_update: Annotated[int, Field(ge=1, le=10**5)] = 40  # B
    groups_per_request: Annotated[int, Field(ge=1, le=10**5)] = 4  # groups that one actor imagines in one batch
    # Trajectories that one actor imagines in one call; 0: those of groups_per_request groups. Members of a group may be
    # imagined on several actors.
    trajectories_per_request: Annotated[int, Field(ge=0, le=10**6)] = 0
    # Trajectories that policy and world model compute at once, with copies in slots that are left over; 0: those of a request.
    slots: Annotated[int, Field(ge=0, le=10**5)] = 0
    temperature: Positive = 1.0
    world: Literal["imagination", "environment"] = (
        "imagination"  # where rollouts are made; an environment judges itself
    )
    num_chunks: Annotated[int, Field(ge=0, le=10**5)] = 0  # decisions in an imagined trajectory; 0: the whole horizon
    # Moments of each collected episode, at the beginnings of chunks, that rollouts start from besides its first frame.
    keyframes_per_episode: Annotated[int, Field(ge=0, le=10**4)] = 0
    # Of start states: shuffled for every update, or those first whose groups are likely to have mixed outcomes, by what
    # came of them in the latest updates.
    start_order: Literal["shuffled", "signal"] = "shuffled"
    # Of several tasks, how many of an update's groups begin from each: by `environment.task_weights`, or by these times the
    # probability that a group of the task has mixed outcomes, by what came of it in the latest updates.
    task_draw: Literal["weight", "signal"] = "weight"
    speculation: Share = 0.0  # groups imagined ahead beyond those that may be needed, as a share of B: shorter tails
    max_attempts: Count = 512  # groups issued for one update before the run gives up
    # Trajectories of the whole run, rejected ones included, after which training ends as it stands; 0: any number.
    max_trajectories: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: GRPO needs at least 2; set rollout.group_size")
        if self.max_attempts < self.groups_per_update:
            raise ValueError(
                f"max_attempts={self.max_attempts} is below groups_per_update={self.groups_per_update}; "
                "set rollout.max_attempts"
            )
        smallest = self.groups_per_update * self.group_size
        if 0 < self.max_trajectories < smallest:
            raise ValueError(
                f"max_trajectories={self.max_trajectories} is below the {smallest} of one update; raise "
                "rollout.max_trajectories or lower rollout.groups_per_update"
            )
        together = self.groups_per_request * self.group_size
        if self.trajectories_per_request and together % self.trajectories_per_request:
            raise ValueError(
                f"trajectories_per_request={self.trajectories_per_request} does not divide the {together} trajectories of "
                "rollout.groups_per_request groups; set rollout.trajectories_per_request"
            )
        if self.slots > self.request_size:
            raise ValueError(
                f"slots={self.slots} is more than the {self.request_size} trajectories of a request; set rollout.slots"
            )
        if self.slots and self.world == "environment":
            raise ValueError(
                f"slots={self.slots}: an environment steps all of its scenes together and exactly; set rollout.slots to 0"
            )
        if (self.num_chunks or self.keyframes_per_episode) and self.world == "environment":
            raise ValueError(
                f"num_chunks={self.num_chunks}, keyframes_per_episode={self.keyframes_per_episode}: an environment begins "
                "where its episodes begin and runs to their end; set both to 0 in rollout"
            )
        return self

    @property
    def request_size(self) -> int:
        """Trajectories that one actor imagines in one call."""
        return self.trajectories_per_request or self.groups_per_request * self.group_size

    def check(self, num_chunks: int, clip_length: int) -> None:
        """Raises ValueError for rollouts longer than an episode of `num_chunks`, or too short to be judged."""
        if self.num_chunks > num_chunks:
            raise ValueError(
                f"rollout.num_chunks={self.num_chunks} is more than the {num_chunks} of an episode (environment.horizon / "
                "rollout.chunk_length); set rollout.num_chunks, or 0 for all"
            )
        num_frames = self.num_chunks * self.chunk_length + 1
        if self.num_chunks and clip_length > num_frames:
            raise ValueError(
                f"rollout.num_chunks={self.num_chunks}: {num_frames} frames are fewer than reward.clip_length={clip_length}, "
                "which is judged; set rollout.num_chunks"
            )


class FilterConfig(Section):
    dynamic_sampling: bool = True  # groups whose outcomes are all equal are dropped, and others imagined for them
    # Groups are issued until the batch fills with this probability, by the share that was admitted so far; 0: no more than
    # can be part of it. The others are surplus, which costs nothing only on actors that would idle.
    fill_probability: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_staleness: Annotated[int, Field(ge=0)] = 0  # updates that a group's weights may lie behind the learner's
    min_mean: Share = 0.0  # a group whose success rate is outside [min_mean, max_mean] is dropped
    max_mean: Share = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_mean > self.max_mean:
            raise ValueError(f"filter.min_mean={self.min_mean} is above filter.max_mean={self.max_mean}")
        if not self.dynamic_sampling and (self.min_mean, self.max_mean) != (0.0, 1.0):
            raise ValueError(
                f"filter.min_mean={self.min_mean}, filter.max_mean={self.max_mean}: filter.dynamic_sampling=false takes "
                "every group, whatever its mean; remove them"
            )
        return self
