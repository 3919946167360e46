"""How many trajectories the rollouts of a run may take, where each one costs something: a robot's time."""

from __future__ import annotations

from wmpo_ray.algorithms.group_queue import metric_prefix
from wmpo_ray.config.run import Config


class Budget:
    """Counts the trajectories of whole groups, update by update.

    A group may be issued if all groups before it in the issue order fit into the budget with it, so what is issued
    depends neither on the number of actors nor on interruptions.
    """

    def __init__(self, config: Config):
        self.limit = config.rollout.max_trajectories
        self.group_size, self.per_request = config.rollout.group_size, config.rollout.groups_per_request
        self._metric = f"{metric_prefix(config)}/trajectories"
        self._spent: dict[int, int] = {}  # by update
        self.is_closed = False  # the last batch that fits has been taken

    @property
    def spent(self) -> int:
        """Trajectories of the updates whose batches have been taken."""
        return sum(self._spent.values())

    def allows(self, num_issued: int) -> bool:
        """Whether another request fits, with so many groups issued for the present update."""
        if self.is_closed:
            return False
        return not self.limit or self.spent + (num_issued + self.per_request) * self.group_size <= self.limit

    def take(self, update: int, metrics: dict[str, float]) -> None:
        """Count the batch of an update, from its metrics."""
        self._spent[update] = round(metrics[self._metric])

    def restore(self, history: list[dict]) -> None:
        """Count again, from the metrics of the updates that the learner's checkpoint contains."""
        self.is_closed = False
        self._spent = {int(line["update"]) - 1: round(line[self._metric]) for line in history if self._metric in line}
