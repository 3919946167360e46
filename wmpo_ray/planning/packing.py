"""Which node could take which bundle, as a pure function of what the nodes have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

EPSILON = 1e-6


class Demand(Protocol):
    """Resources that one node must give together."""

    @property
    def name(self) -> str: ...

    @property
    def resources(self) -> Mapping[str, float]: ...

    @property
    def label_selector(self) -> Mapping[str, str]: ...


def first_fit(demands: Sequence[Demand], nodes: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Demand -> name of the first node that has room for it beside those before it, or None where none has.

    Demands that are hard to place go first: those that name an accelerator or a label, then the largest. Nodes without
    GPUs are filled first, so that who needs no GPU blocks none. A share of a GPU is taken of one GPU, whole ones of
    empty ones. Not the best packing there is; Ray does not look for that either.

    Args:
        nodes: as `ray.nodes()` gives them: "Alive", "NodeName", "Resources" in total, "Labels"
    """
    rooms = [_Room(node) for node in nodes if node["Alive"]]
    rooms.sort(key=lambda room: len(room.gpus))

    def hardness(demand: Demand) -> tuple[float, ...]:
        resources = demand.resources
        constraints = len(demand.label_selector) + len(resources.keys() - {"CPU", "GPU"})
        return constraints, resources.get("GPU", 0.0), resources.get("CPU", 0.0)

    found: dict[str, str | None] = {demand.name: None for demand in demands}
    for demand in sorted(demands, key=hardness, reverse=True):
        room = next((room for room in rooms if room.has_room_for(demand)), None)
        if room is not None:
            room.take(demand.resources)
            found[demand.name] = room.name
    return found


class _Room:
    """What is left of a node."""

    def __init__(self, node: Mapping[str, Any]):
        self.name: str = node["NodeName"]
        self.labels: Mapping[str, str] = node["Labels"]
        self.left = {kind: amount for kind, amount in node["Resources"].items() if kind != "GPU"}
        self.gpus = [1.0] * int(node["Resources"].get("GPU", 0))  # free share of each

    def has_room_for(self, demand: Demand) -> bool:
        plain = all(self.left.get(kind, 0.0) + EPSILON >= x for kind, x in demand.resources.items() if kind != "GPU")
        labelled = all(self.labels.get(key) == value for key, value in demand.label_selector.items())
        return plain and labelled and self._gpus_for(demand.resources.get("GPU", 0.0)) is not None

    def take(self, resources: Mapping[str, float]) -> None:
        for kind, amount in resources.items():
            if kind != "GPU":
                self.left[kind] -= amount
        gpus = resources.get("GPU", 0.0)
        for i in self._gpus_for(gpus) or ():
            self.gpus[i] -= min(gpus, 1.0)

    def _gpus_for(self, amount: float) -> list[int] | None:
        """Indices of the GPUs that would be taken; None if there are too few."""
        count = math.ceil(amount)
        fitting = [i for i, free in enumerate(self.gpus) if free + EPSILON >= min(amount, 1.0)]
        return fitting[:count] if len(fitting) >= count else None
