"""Slots and admission: which groups are in flight, which wait for training, in which order they are taken.

A slot is held from the request until the group is rejected or trained. Groups are admitted in the order they were
issued, never in the order they finished: first-come admission would favour easy or short groups, and the result would
depend on the number of actors.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from wmpo_ray.config import Config
from wmpo_ray.errors import UserError
from wmpo_ray.group_filter import judge_group
from wmpo_ray.types import Group, RolloutRequest, Verdict


class NothingAdmittedError(UserError):
    """`max_attempts` groups were issued for one update and too few of them carry a learning signal."""


class ReadyBatch(NamedTuple):
    groups: list[Group]  # admitted, in issue order
    metrics: dict[str, float]  # what became of everything issued up to the last of them


class GroupQueue:
    """The groups under way and waiting, in issue order, and counts of every verdict."""

    def __init__(self, config: Config):
        self.config = config
        self.num_slots = (config.filter.max_staleness + 1) * config.rollout.groups_per_update
        self._issued: dict[tuple[int, int], int] = {}  # key -> version of the weights, in issue order
        self._settled: dict[tuple[int, int], tuple[Verdict, Group]] = {}
        self._num_in_training = 0
        self.verdicts: Counter[Verdict] = Counter()
        self.outcomes: Counter[int] = Counter()  # successes in a group -> number of groups

    @property
    def num_free_slots(self) -> int:
        admitted = sum(verdict is Verdict.ADMIT for verdict, _ in self._settled.values())
        in_flight = len(self._issued) - len(self._settled)
        return self.num_slots - in_flight - admitted - self._num_in_training

    def issue(self, request: RolloutRequest) -> None:
        for group in request.groups:
            self._issued[group.key] = request.version

    def is_surplus(self, request: RolloutRequest) -> bool:
        """True if no group of the request is waited for any more; they are counted."""
        if any(group.key in self._issued for group in request.groups):
            return False
        self.verdicts[Verdict.SURPLUS] += len(request.groups)
        return True

    def settle(self, group: Group, learner_version: int) -> Verdict:
        """Judge a scored group; it waits for its turn. A group that nobody waits for any more is surplus."""
        if group.request.key not in self._issued:
            self.verdicts[Verdict.SURPLUS] += 1
            return Verdict.SURPLUS
        verdict = judge_group(group.success, group.version, learner_version, self.config.filter)
        self._settled[group.request.key] = (verdict, group)
        self.outcomes[int(group.success.sum())] += 1
        return verdict

    def take_batch(self) -> ReadyBatch | None:
        """The first `groups_per_update` admitted groups in issue order, once every group before them is settled.

        Their slots stay taken until `release`.
        """
        taken: list[tuple[Verdict, Group]] = []
        admitted: list[Group] = []
        for key in self._issued:
            if key not in self._settled:
                return None
            taken.append(self._settled[key])
            if taken[-1][0] is Verdict.ADMIT:
                admitted.append(taken[-1][1])
            if len(admitted) == self.config.rollout.groups_per_update:
                break
        else:
            return None
        for _, group in taken:
            del self._issued[group.request.key], self._settled[group.request.key]
        self._num_in_training = len(admitted)
        self.verdicts.update(verdict for verdict, _ in taken)
        metrics = self._metrics([group for _, group in taken], admitted)
        self.verdicts.clear()
        self.outcomes.clear()
        return ReadyBatch(admitted, metrics)

    def _metrics(self, groups: list[Group], admitted: list[Group]) -> dict[str, float]:
        success = np.concatenate([group.success for group in groups])
        refuted = sum(group.num_refuted for group in groups)
        finish = np.concatenate([group.finish_step[group.success] for group in groups])
        figures = {
            "imagined/success_rate": float(success.mean() + refuted / len(success)),
            "imagined/verified_success_rate": float(success.mean()),
            "imagined/success_length_frames": float(finish.mean()) if len(finish) else float("nan"),
            "imagined/trajectories": float(len(success)),
            "queue/admitted_success_rate": float(np.mean([group.success.mean() for group in admitted])),
        }
        return figures | {f"queue/{verdict.value}": float(self.verdicts[verdict]) for verdict in Verdict}

    def release(self, learner_version: int) -> None:
        """Free the slots of the batch that was trained; forget what is now too old.

        Groups still in flight for an update that is over are counted as surplus when they come.
        """
        self._num_in_training = 0
        oldest = learner_version - self.config.filter.max_staleness
        for key in [key for key, version in self._issued.items() if version < oldest]:
            del self._issued[key]
            if self._settled.pop(key, None) is not None:
                self.verdicts[Verdict.SURPLUS] += 1

    def check_attempts(self, attempts: int) -> None:
        """Raise NothingAdmittedError once `attempts` groups were issued for one update without a full batch."""
        limit = self.config.rollout.max_attempts
        if attempts < limit:
            return
        size = self.config.rollout.group_size
        admitted = sum(verdict is Verdict.ADMIT for verdict, _ in self._settled.values())
        histogram = ", ".join(f"{k}/{size}: {self.outcomes[k]}" for k in range(size + 1) if self.outcomes[k])
        raise NothingAdmittedError(
            f"{attempts} groups were imagined for one update and only {admitted} of the "
            f"{self.config.rollout.groups_per_update} needed have mixed outcomes; successes in a group -> groups: "
            f"{histogram or 'none scored'}. If all are 0 the reward model never accepts: look at the gate's figures and "
            "its threshold; else lower rollout.groups_per_update or raise rollout.max_attempts"
        )
