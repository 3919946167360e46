"""Computes how many workers a run should have, and requests nodes for them from the cluster's autoscaler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RpcError

from cluster.workers.placement import Bundle
from wmpo_ray.config.cluster import Size, bounds
from wmpo_ray.config.roles import ROLES, elastic_roles, rollout_role
from wmpo_ray.config.run import Config

HEADROOM = 1.25  # a worker is removed only if the others could serve this multiple of the demand
WINDOW = 32  # number of latest requests and updates that rates are measured over


def target_workers(
    size: Size,
    current: int,
    demand: float | None,
    worker_rate: float | None,
    most_useful: int,
    in_waves: bool = False,
    has_work: bool = True,
) -> int:
    """Number of workers that serves `demand`, within the bounds of `size`.

    That is demand / worker_rate, rounded up. Where generation overlaps training (staleness 1 and more) fewer would
    starve the learner and more would wait for it. Where the two alternate (staleness 0) an update takes g/n + u with
    n workers, g the seconds that one worker would need and u the learner's; demand / worker_rate is then g/u, the knee
    of the curve: it maximises speedup x efficiency = g_1^2 / (n (g/n + u)^2), and both are at least half of what any
    other number gives (Eager, Zahorjan and Lazowska 1989, Speedup versus efficiency in parallel systems).

    It grows at once and shrinks only past `HEADROOM`.

    Args:
        size, current: a fixed number, or (min, max); the last target
        demand: groups/s needed from all workers together; None: not measured yet
        worker_rate: groups/s of one busy worker; None: not measured yet
        most_useful: largest number of concurrent requests
        in_waves: requests go out together, so workers that only idle in the last wave are not counted
        has_work: False once no more requests will be issued
    """
    low, high = bounds(size)
    if not has_work:
        return low
    if demand is None or worker_rate is None:
        return min(max(current, low, 1), high)

    def workers(asked: float) -> int:
        count = min(max(math.ceil(asked / worker_rate - 1e-9), low, 1), high, max(most_useful, low))
        num_waves = math.ceil(most_useful / count)
        return max(math.ceil(most_useful / num_waves), low) if in_waves else count

    needed, kept = workers(demand), workers(demand * HEADROOM)
    return needed if needed > current else min(current, kept)


class WorkerTargets:
    """Measures rates during a run and computes how many workers each elastic role should have."""

    def __init__(self, config: Config):
        self.config = config
        self._rolled_out = _Rate()
        self._scored = _Rate()
        self._consumed = _Rate()
        self._last: dict[str, int] = dict.fromkeys(elastic_roles(config), 0)
        self._is_new = True  # a rate was measured since the last call
        self._had_work = True

    def rolled_out(self, num_groups: float, seconds: float) -> None:
        """Record a finished request: its number of groups, and how long one worker was busy with it."""
        self._is_new = True
        self._rolled_out.add(num_groups, seconds)

    def scored(self, num_groups: float, seconds: float) -> None:
        self._is_new = True
        self._scored.add(num_groups, seconds)

    def updated(self, num_settled: int, seconds: float) -> None:
        """Record a finished update: groups rolled out for it, rejected ones included, and the learner's seconds."""
        self._is_new = True
        self._consumed.add(num_settled, seconds)

    def targets(self, has_work: bool = True) -> dict[str, int]:
        """Role -> target number of workers. Without measurements: the minimum, or one if there is work."""
        if not self._last or (has_work == self._had_work and not self._is_new):
            return self._last
        self._had_work, self._is_new = has_work, False
        rollout, staleness = self.config.rollout, self.config.max_staleness
        most_useful = math.ceil((staleness + 1) * rollout.groups_per_update * rollout.group_size / rollout.request_size)
        leader, worker_rate = rollout_role(self.config), self._rolled_out.value
        sizes = {
            leader: target_workers(
                ROLES[leader].size(self.config),
                self._last[leader],
                self._consumed.value,
                worker_rate,
                most_useful,
                in_waves=staleness == 0,
                has_work=has_work,
            )
        }
        # Reward workers keep up with the rollouts, so that a group only waits for its batch.
        offered = None if worker_rate is None else sizes[leader] * worker_rate
        for role in self._last.keys() - {leader}:
            size, last, rate = ROLES[role].size(self.config), self._last[role], self._scored.value
            sizes[role] = target_workers(size, last, offered, rate, most_useful, has_work=has_work)
        self._last = sizes
        return self._last


class _Rate:
    """Groups per second over the latest `WINDOW` measurements."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, num_groups: float, seconds: float) -> None:
        self._pairs.append((num_groups, seconds))

    @property
    def value(self) -> float | None:
        """None until there is a measurement."""
        groups, seconds = sum(pair[0] for pair in self._pairs), sum(pair[1] for pair in self._pairs)
        return groups / seconds if groups and seconds > 0 else None


class Autoscaler:
    """The run's resource request to the cluster's autoscaler; it has no effect without an autoscaler.

    The request is persistent and the cluster's only one: it lasts until it is replaced, even after the driver's death.
    So it covers all bundles of the run, and `withdraw` belongs in a `finally`.
    """

    def __init__(self, request: Callable[..., Any] = request_resources):
        self._request = request
        self._accepted: list[Bundle] | None = []  # the request that the head holds; None: unknown

    def request(self, bundles: Sequence[Bundle]) -> bool:
        """Request a cluster large enough for all of `bundles`; sent only if they changed.

        Returns False if the head did not answer: try again later.
        """
        return self._send([bundle for bundle in bundles if bundle.resources])

    def withdraw(self) -> bool:
        """Take the request back, if there is one; returns False if the head did not answer."""
        return self._send([])

    def _send(self, bundles: list[Bundle]) -> bool:
        if bundles == self._accepted:
            return True
        options: dict[str, Any] = {"bundles": [bundle.resources for bundle in bundles]}
        if any(bundle.labels for bundle in bundles):
            options["bundle_label_selectors"] = [bundle.label_selector for bundle in bundles]
        self._accepted = None
        try:
            self._request(**options)
        except RpcError:
            return False  # the head is unavailable for a moment; running workers do not depend on it
        self._accepted = bundles
        return True
