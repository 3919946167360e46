"""The resources of an actor, and their Ray options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Resources(NamedTuple):
    """Resources that an actor is spawned with; in a bundle, the bundle determines accelerator and labels."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    accelerator_type: str = ""
    labels: tuple[str, ...] = ()  # "key=value", of the node
    bundle: Any = None  # (placement group, index in it)
    runtime_env: Mapping[str, Any] | None = None  # packages and variables of the process, as Ray takes them


def node_selector(labels: Iterable[str]) -> dict[str, str]:
    """Labels ("key=value") as Ray's node selector."""
    return dict(label.split("=", 1) for label in labels)


def ray_options(resources: Resources) -> dict[str, Any]:
    """The keyword arguments of `ray.remote(cls).options(...)` that place an actor."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    if resources.runtime_env:
        options["runtime_env"] = dict(resources.runtime_env)
    if resources.bundle is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(*resources.bundle)
        return options
    if resources.accelerator_type:
        options["accelerator_type"] = resources.accelerator_type
    if resources.labels:
        options["label_selector"] = node_selector(resources.labels)
    return options
