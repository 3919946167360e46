"""Evaluates the policy in the real environment during training in imagination. The learner never sees the results."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.events.event_log import emit
from cluster.loop.rollouts import Scored
from cluster.loop.team import Team
from cluster.runtimes.runtime import Ref
from cluster.workers.tasks import Task
from wmpo_ray.config.run import Config
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.rollout.evaluation import MOST_TOGETHER, recording_batch
from wmpo_ray.runs.outcomes import start_tasks

EVALUATE = ("evaluate", "evaluate_saved")


class Evaluated(NamedTuple):
    update: int
    metrics: dict[str, float]


class LabelledRollouts(NamedTuple):
    labels: np.ndarray  # [2, M] bool: real success, imagined success; none, where no label is known
    tasks: np.ndarray  # [M] str, of each; "" where there is one task, or where it is not known

    @classmethod
    def joined(cls, parts: Sequence[LabelledRollouts]) -> LabelledRollouts:
        return cls(
            np.concatenate([part.labels for part in parts], axis=1), np.concatenate([part.tasks for part in parts])
        )


class Reality:
    """Submits tasks to the environment actor."""

    def __init__(self, config: Config, team: Team):
        self.config, self.team = config, team
        self._asked: set[int] = set()  # updates whose success is being measured
        self._labels: dict[int, dict[int, LabelledRollouts]] = {}  # update -> those of each request compared so far
        self._seeds = [
            int(seed) for seed in start_seeds("on_the_way", config.evaluation.num_starts_on_the_way, config.seed)
        ]
        self._tasks = start_tasks(config, self._seeds)  # of each, where there are several

    def evaluate(self, update: int, weights: Ref) -> None:
        """Measure the real success rate of these weights if this update is due for evaluation."""
        every = self.config.evaluation.every_updates
        if every and update % every == 0:
            self._evaluate("evaluate", weights, update)

    def evaluate_saved(self, update: int, path: Path) -> None:
        """The same of a candidate whose evaluation an interruption has lost."""
        self._evaluate("evaluate_saved", str(path), update)

    def _evaluate(self, method: str, policy: Ref | str, update: int) -> None:
        """Share the starts among the workers, in whole batches: the same episodes, whatever their number."""
        if update in self._asked:  # a restarted learner does not take it back
            return
        self._asked.add(update)
        shares, found = self._shares(), {}

        def joined(index: int, success: np.ndarray) -> dict[str, float] | None:
            found[index] = success
            if len(found) < len(shares):
                return None
            return success_metrics(np.concatenate([found[i] for i in range(len(shares))]), self._tasks)

        for index, seeds in enumerate(shares):
            arguments = (policy, seeds, self.config.evaluation.temperature)
            self._ask(method, arguments, update, partial(joined, index), index)

    def _shares(self) -> list[list[int]]:
        environment, seeds = self.config.environment, self._seeds
        size = recording_batch(environment.horizon, environment_facts(environment).frame_shape, MOST_TOGETHER)
        num_batches = math.ceil(len(seeds) / size)
        num = max(1, min(self.team.crew.pools["environment"].target, num_batches))
        cuts = [size * (num_batches * i // num) for i in range(num)] + [len(seeds)]
        return [seeds[first:last] for first, last in pairwise(cuts)]

    def compare_labels(self, event: Scored) -> None:
        """Execute the first imagined trajectories of an update in the real environment; compare the labels."""
        request, rollout = event.request, self.config.rollout
        seeds = [group.start.seed for group, _ in request.members]
        is_real = self.config.rollout.world == "environment"
        if is_real or not self.config.evaluation.every_updates or None in seeds:
            return
        scores = (event.scores, event.seconds) if event.scores_ref is None else event.scores_ref
        arguments = (event.trajectories.ref, seeds, scores)
        update, place = request.groups[0].update + 1, request.members[0]
        index = (place[0].attempt * rollout.group_size + place[1]) // rollout.request_size
        found = self._labels.setdefault(update, {})
        tasks = np.array([group.start.task for group, _ in request.members])

        def joined(labels: np.ndarray) -> dict[str, float] | None:
            # Those of unknown label are left out, so that of the others nobody knows which they are.
            known = labels.shape[1] == len(tasks)
            found[index] = LabelledRollouts(labels, tasks if known else np.full(labels.shape[1], ""))
            if len(found) < rollout.groups_per_request * rollout.group_size // rollout.request_size:
                return None
            self._labels.pop(update, None)
            return label_metrics(LabelledRollouts.joined([found[part] for part in sorted(found)]))

        self._ask("compare_labels", arguments, update, joined, index)

    def _ask(
        self,
        method: str,
        arguments: tuple,
        update: int,
        metrics: Callable[[np.ndarray], dict[str, float] | None],
        share: int = 0,
    ) -> None:
        """`metrics`: from the answer; None where there are other shares that are not answered yet."""

        def skip(error: Exception) -> None:
            self._over(method, update)
            text = f"update {update}: skipped {method}: {error}"
            emit("evaluation.failed", text, logging.WARNING, update=update, error=str(error))

        def done(value: Any, _ref: Any) -> Evaluated | None:
            if (values := metrics(value)) is None:
                return None
            self._over(method, update)
            return Evaluated(update, values)

        self.team.crew.submit(
            Task(
                "environment",
                method,
                arguments,
                order=(update, -1, share),  # before the rollouts of that update
                done=done,
                given_up=skip,
                input_lost=skip,
                # Shown with the update that these weights, or labels, come from.
                worked=lambda worker, work: self.team.telemetry.worked(
                    worker, method, work, max(0, update - 1), update
                ),
            )
        )

    def _over(self, method: str, update: int) -> None:
        if method in EVALUATE:
            self._asked.discard(update)


def success_metrics(success: np.ndarray, tasks: Sequence[str] = ()) -> dict[str, float]:
    """success [M] bool; tasks: of each start, where there are several."""
    metrics = _success("real/success", success)
    for name in sorted(set(tasks)):
        metrics |= _success(f"task/{name}/real_success", success[np.array(tasks) == name])
    return metrics


def _success(key: str, success: np.ndarray) -> dict[str, float]:
    low, high = wilson_interval(int(success.sum()), len(success))
    return {f"{key}_rate": float(success.mean()), f"{key}_low": low, f"{key}_high": high}


def label_metrics(compared: LabelledRollouts) -> dict[str, float]:
    real, imagined = compared.labels
    if not len(real):
        return {}
    right = real == imagined
    names = sorted(set(compared.tasks.tolist()) - {""})
    by_task = {f"task/{name}/label_agreement_rate": float(right[compared.tasks == name].mean()) for name in names}
    return {
        "real/label_agreement": float(right.mean()),
        "real/false_positive_rate": float((imagined & ~real).mean()),
    } | by_task
