"""How long an update takes on N imagination actors: the main loop's rules on an empty sheet, without actors or models.

On-policy, an update is a race: trajectories are imagined by whoever is free, groups are issued as some are rejected, and
the learner takes mini-batches as their groups are settled. No formula gives its length, so it is played a few times.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from dataclasses import dataclass, field

from wmpo_ray.algorithms.batching import blocks_of
from wmpo_ray.algorithms.keep_rate import KeepRate
from wmpo_ray.config.run import Config

DRAWS = 5
SPREAD = 0.15  # standard deviation of the logarithm of a request's time: hosts and calls differ
KNOWN = 1000  # groups that the estimate of the share has seen


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one trajectory's imagination, one group's judgement, a whole update, and weights on their way."""

    trajectory: float
    judge: float
    update: float
    weights: float = 0.0


@dataclass(frozen=True)
class ExpectedUpdate:
    seconds: float
    groups: float  # that were begun
    exposed: float  # share of the learner's time after its batch is full


def expected_update(config: Config, times: StepTimes, num_actors: int, keep_rate: float) -> ExpectedUpdate:
    """The mean of `DRAWS` updates at staleness 0, if a share `keep_rate` of the groups is admitted.

    Raises ValueError for a share that is not in (0, 1].
    """
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate={keep_rate}: the share of groups that are admitted lies above 0 and at most at 1")
    played = [_Race(config, times, num_actors, keep_rate, draw).run() for draw in range(DRAWS)]
    return ExpectedUpdate(*(statistics.mean(values) for values in zip(*played, strict=True)))


@dataclass
class _Race:
    config: Config
    times: StepTimes
    num_actors: int
    keep_rate: float
    draw: int
    requests: list[tuple[int, ...]] = field(default_factory=list)  # waiting: the groups of each, in issue order
    missing: list[int] = field(default_factory=list)  # requests of each group that are not answered
    verdicts: dict[int, bool] = field(default_factory=dict)
    num_begun: int = 0

    def __post_init__(self) -> None:
        self.rng, self.rate = random.Random(self.draw), KeepRate()
        for number in range(KNOWN):
            self.rate.judged(0, number < self.keep_rate * KNOWN)

    def run(self) -> tuple[float, float, float]:
        """(seconds, groups begun, exposed share of the learner's time)."""
        free, events = self.num_actors, list[tuple[float, int, tuple[int, ...], bool]]()
        size, now, order = self.config.rollout.groups_per_update, self.times.weights, 0
        settled_at: list[float] = []  # when the prefix of the issue order held one admitted group more
        while len(settled_at) < size:
            self._issue()
            while free and self.requests:
                groups = self.requests.pop(0)
                self.num_begun = max(self.num_begun, groups[-1] + 1)
                free, order = free - 1, order + 1
                heapq.heappush(events, (now + self._seconds(), order, groups, False))
            now, _, groups, is_judged = heapq.heappop(events)
            if is_judged:
                self._answer(groups)
                settled_at += [now] * (self._num_in_prefix() - len(settled_at))
            else:
                free, order = free + 1, order + 1
                heapq.heappush(events, (now + self.times.judge * self._share(), order, groups, True))
        end = self._learned(settled_at[:size])
        return end, float(self.num_begun), (end - settled_at[size - 1]) / self.times.update

    def _share(self) -> float:
        rollout = self.config.rollout
        return rollout.request_size / rollout.group_size

    def _seconds(self) -> float:
        spread = math.exp(SPREAD * self.rng.gauss(0.0, 1.0))
        return self.times.trajectory * self.config.rollout.request_size * spread

    def _issue(self) -> None:
        """As `GroupQueue.has_free_slot`."""
        rollout, probability = self.config.rollout, self.config.filter.fill_probability
        slots = rollout.groups_per_update * (1 + rollout.speculation)
        while True:
            admitted = sum(self.verdicts.values())
            undecided = len(self.missing) - len(self.verdicts)
            lacking = rollout.groups_per_update - admitted
            needed = self.rate.needed(0, lacking, probability) if probability else 0
            if undecided + admitted >= slots and undecided >= needed:
                return
            first, count = len(self.missing), rollout.groups_per_request
            self.missing += [0] * count
            for begin in range(0, count * rollout.group_size, rollout.request_size):
                last = (begin + rollout.request_size - 1) // rollout.group_size
                groups = tuple(range(first + begin // rollout.group_size, first + last + 1))
                self.requests.append(groups)
                for group in groups:
                    self.missing[group] += 1

    def _answer(self, groups: tuple[int, ...]) -> None:
        for group in groups:
            self.missing[group] -= 1
            if not self.missing[group]:
                self.verdicts[group] = random.Random(f"{self.draw}/{group}").random() < self.keep_rate

    def _num_in_prefix(self) -> int:
        count = 0
        for group in range(len(self.missing)):
            if group not in self.verdicts:
                break
            count += self.verdicts[group]
        return count

    def _learned(self, settled_at: list[float]) -> float:
        """When the last step is done; with streaming, each block begins once its groups are there."""
        blocks, group_size = blocks_of(self.config), self.config.rollout.group_size
        if not self.config.cluster.stream_updates:
            return settled_at[-1] + self.times.update
        total, begin, end = len(settled_at) * group_size, 0, 0.0
        while begin < total:
            stop = min(blocks.end(begin), total)
            there = settled_at[math.ceil(stop / group_size) - 1]
            end = max(end, there) + self.times.update * (stop - begin) / total
            begin = stop
        return end
