"""Slots and admission: tracks groups in flight and waiting, and takes batches in issue order.

Every update has its own issue order. Its batch is the shortest prefix of that order that holds enough admitted groups:
first-come admission would favour easy or short groups, and the result would depend on the number of actors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from wmpo_ray.algorithms.base import online_algorithm
from wmpo_ray.algorithms.keep_rate import KeepRate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Group, GroupRequest, Verdict

Key = tuple[int, int]  # update, attempt


class NothingAdmittedError(UserError):
    """`max_attempts` groups were issued for one update and too few of them carry a learning signal."""


class ReadyBatch(NamedTuple):
    update: int
    groups: list[Group]  # admitted, in issue order
    surplus: list[Key]  # issued for this update and not needed, in issue order
    metrics: dict[str, float]  # about every group issued up to the last one of the batch


@dataclass
class _Issued:
    """The groups of one update: `settled` has a verdict and, unless it was quarantined, the scored group."""

    keys: list[Key] = field(default_factory=list)
    settled: dict[Key, tuple[Verdict, Group | None]] = field(default_factory=dict)
    num_admitted: int = 0

    @property
    def num_open(self) -> int:
        """Groups that are or may become part of the batch."""
        return len(self.keys) - len(self.settled) + self.num_admitted


class GroupQueue:
    """Groups in flight and waiting, by update. Keys that are not issued, or already settled, are ignored."""

    def __init__(self, config: Config):
        self.config, self._algorithm = config, online_algorithm(config)
        self._size = config.rollout.groups_per_update
        self._slots = self._size + round(config.rollout.speculation * self._size)
        self._updates: dict[int, _Issued] = {}
        self.keep_rate = KeepRate()

    def has_free_slot(self, update: int) -> bool:
        """Whether another group should be issued: the undecided and admitted groups may not, or need not, fill the batch."""
        issued = self._updates.get(update)
        if issued is None or issued.num_open < self._slots:
            return True
        probability = self.config.filter.fill_probability
        if not probability or len(issued.keys) >= self.config.rollout.max_attempts:
            return False
        missing, undecided = self._size - issued.num_admitted, issued.num_open - issued.num_admitted
        return undecided < self.keep_rate.needed(update, missing, probability)

    def num_issued(self, update: int) -> int:
        return len(self._updates[update].keys) if update in self._updates else 0

    def counts(self, update: int) -> dict[str, int]:
        """Groups in flight and admitted, for this and later updates; the batch size; free slots of this update."""
        issued = [one for number, one in self._updates.items() if number >= update]
        admitted = sum(one.num_admitted for one in issued)
        in_flight = sum(one.num_open for one in issued) - admitted
        mine = self._updates.get(update)
        free = self._slots - (mine.num_open if mine else 0)
        return {"in_flight": in_flight, "admitted": admitted, "needed": self._size, "free": max(free, 0)}

    def issue(self, groups: Iterable[GroupRequest]) -> None:
        for group in groups:
            self._updates.setdefault(group.update, _Issued()).keys.append(group.key)

    def is_open(self, key: Key) -> bool:
        """True while a group is needed."""
        issued = self._updates.get(key[0])
        # Attempts are issued without gaps, so the number shows whether this one was issued.
        return issued is not None and key not in issued.settled and key[1] < len(issued.keys)

    def settle(self, group: Group, learner_version: int) -> Verdict | None:
        """Judge a scored group and queue it. Returns None if the group is no longer needed."""
        if not self.is_open(group.request.key):
            return None
        is_stale = learner_version - group.version > self.config.filter.max_staleness
        verdict = Verdict.STALE if is_stale else self._algorithm.admit(group)
        issued = self._updates[group.request.update]
        issued.settled[group.request.key] = (verdict, group)
        issued.num_admitted += verdict is Verdict.ADMIT
        self.keep_rate.judged(group.request.update, verdict is Verdict.ADMIT)
        return verdict

    def quarantine(self, request: GroupRequest) -> bool:
        """Give up a group; others fill the batch. Returns False if it is no longer needed."""
        if not self.is_open(request.key):
            return False
        self._updates[request.update].settled[request.key] = (Verdict.QUARANTINED, None)
        return True

    def first_admitted(self, update: int) -> list[Group]:
        """The admitted groups that are part of the batch whatever else is settled: those before the first undecided one."""
        issued = self._updates.get(update)
        found: list[Group] = []
        for key in issued.keys if issued else ():
            if issued is None or key not in issued.settled or len(found) == self._size:
                break
            verdict, group = issued.settled[key]
            if verdict is Verdict.ADMIT and group is not None:
                found.append(group)
        return found

    def is_complete(self, update: int) -> bool:
        """Whether a batch of this update can be taken."""
        return self._prefix(update) is not None

    def take_batch(self, update: int) -> ReadyBatch | None:
        """The first `groups_per_update` admitted groups, once every group issued before the last of them is settled.

        The update is closed by it: its other groups are surplus, and later answers are ignored.
        """
        prefix = self._prefix(update)
        if prefix is None:
            return None
        issued = self._updates.pop(update)
        taken = [issued.settled[key] for key in prefix]
        admitted = [group for verdict, group in taken if verdict is Verdict.ADMIT and group is not None]
        surplus = issued.keys[len(prefix) :]
        verdicts = Counter(verdict for verdict, _ in taken)
        verdicts[Verdict.SURPLUS] = len(surplus)
        scored = [group for _, group in taken if group is not None]
        return ReadyBatch(update, admitted, surplus, _metrics(scored, admitted, verdicts, metric_prefix(self.config)))

    def abandon(self, update: int) -> list[Key]:
        """Close an update without a batch; returns its groups, in issue order."""
        issued = self._updates.pop(update, None)
        return issued.keys if issued else []

    def _prefix(self, update: int) -> list[Key] | None:
        issued = self._updates.get(update)
        if issued is None or issued.num_admitted < self._size:
            return None
        admitted = 0
        for i, key in enumerate(issued.keys):
            if key not in issued.settled:
                return None
            admitted += issued.settled[key][0] is Verdict.ADMIT
            if admitted == self._size:
                return issued.keys[: i + 1]
        return None

    def check_attempts(self, update: int) -> None:
        """Raise NothingAdmittedError once `max_attempts` groups were issued for one update without a full batch."""
        limit = self.config.rollout.max_attempts
        attempts = self.num_issued(update)
        if attempts < limit:
            return
        size = self.config.rollout.group_size
        issued = self._updates[update]
        outcomes = Counter(int(group.success.sum()) for _, group in issued.settled.values() if group is not None)
        histogram = ", ".join(f"{k}/{size}: {outcomes[k]}" for k in range(size + 1) if outcomes[k])
        raise NothingAdmittedError(
            f"{attempts} groups were imagined for one update and only {issued.num_admitted} of the "
            f"{self._size} needed have mixed outcomes; successes in a scored group -> groups: "
            f"{histogram or 'none scored'}. If all are 0, look at success_collect: a base policy that never succeeds has nothing "
            "to learn from (raise policy.cloning.steps or demos.num_trajectories, which begin their stages anew); if it does "
            "succeed, the reward model never accepts: check the gate's metrics and its threshold. Else go on with --resume "
            f"and a higher rollout.max_attempts={limit}, or with fewer rollout.groups_per_update={self._size}, which begins "
            "this stage anew"
        )


def metric_prefix(config: Config) -> str:
    """Prefix of rollout metrics: "imagined", or "rollout" in an environment."""
    return "imagined" if config.rollout.world == "imagination" else "rollout"


def _metrics(groups: list[Group], admitted: list[Group], verdicts: Counter[Verdict], prefix: str) -> dict[str, float]:
    success = np.concatenate([group.success for group in groups])
    refuted = sum(group.num_refuted for group in groups)
    known = np.concatenate([group.outcomes for group in groups])
    finish = np.concatenate([group.finish_step[group.success] for group in groups])
    metrics = {
        f"{prefix}/success_rate": float(success.mean() + refuted / len(success)),
        f"{prefix}/success_length_frames": float(finish.mean()) if len(finish) else float("nan"),
        f"{prefix}/trajectories": float(len(success)),
        "queue/admitted_success_rate": _mean([group.outcomes.mean() for group in admitted if len(group.outcomes)]),
    }
    if prefix == "imagined":
        # Of none known, none succeeded.
        metrics["imagined/verified_success_rate"] = float(known.mean()) if len(known) else 0.0
        metrics["imagined/unknown_share"] = 1 - len(known) / len(success)
    metrics |= {f"queue/{verdict.value}": float(verdicts[verdict]) for verdict in Verdict}
    return metrics | _task_metrics(groups, admitted)


def _task_metrics(groups: list[Group], admitted: list[Group]) -> dict[str, float]:
    """The same of each task, `task/NAME/...`, where the starts say which there are."""
    metrics: dict[str, float] = {}
    for name in sorted({group.request.start.task for group in groups} - {""}):
        own = [group for group in groups if group.request.start.task == name]
        kept = sum(group.request.start.task == name for group in admitted)
        metrics |= {
            f"task/{name}/training_success_rate": float(np.concatenate([group.success for group in own]).mean()),
            f"task/{name}/admitted_groups": float(kept),
            f"task/{name}/refused_groups": float(len(own) - kept),
            f"task/{name}/keep_rate": kept / len(own),
        }
    return metrics


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
