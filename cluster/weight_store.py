"""Weights from the learner to every replica, through the object store: one put, every replica pulls."""

from __future__ import annotations

from typing import Any

from cluster.runtime import Ref, Runtime
from wmpo_ray.types import WeightVersion


class ObjectStorePublisher:
    """Holds the newest weights; any actor that joins later gets the same ones."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self.version: WeightVersion | None = None
        self._weights: Ref = None

    def publish(self, version: WeightVersion, weights: Ref, actors: list[Any]) -> list[Ref]:
        """Send to all actors. Calls of one caller keep their order, so what was asked of an actor before still runs
        under the old weights, and what is asked from now on under the new."""
        self.version, self._weights = version, weights
        return [self.send(actor) for actor in actors]

    def send(self, actor: Any) -> Ref:
        return self._runtime.call(actor, "load_weights", self.version, self._weights)

    @property
    def weights(self) -> Ref:
        return self._weights
