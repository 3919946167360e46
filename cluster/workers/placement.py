"""Places actors: each runs in a bundle, a reserved share of one node that outlives the actor's process.

`bundle_of` is the layout, without a cluster; `PlacementBook` holds the reservations of a run. Every bundle is a
placement group of its own, so that workers come and go one at a time, an actor that is spawned again runs where its
predecessor ran, and the autoscaler sees what is missing. A bundle whose node vanished is placed again by Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ray.util.placement_group import placement_group, remove_placement_group

from cluster.runtimes.resources import Resources, node_selector
from wmpo_ray.config.cluster import RolePlacement
from wmpo_ray.config.roles import ROLES, elastic_roles, roles_of, rollout_role
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError

ACCELERATOR_SHARE = 0.001  # the amount of "accelerator_type:NAME" that Ray itself requests
EPSILON = 1e-6


class Bundle(NamedTuple):
    """Resources reserved together on one node, and the actors (role, index) that share them."""

    name: str
    members: tuple[tuple[str, int], ...]
    num_cpus: float
    num_gpus: float
    accelerator_type: str = ""
    labels: tuple[str, ...] = ()
    siblings: int = 1  # equal bundles, itself included, reserved together: on one node if it has room

    @property
    def resources(self) -> dict[str, float]:
        """Under Ray's resource names; empty if nothing needs to be reserved."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        resources = {kind: amount for kind, amount in asked.items() if amount > 0}
        if resources and self.accelerator_type:
            resources[f"accelerator_type:{self.accelerator_type}"] = ACCELERATOR_SHARE
        return resources

    @property
    def label_selector(self) -> dict[str, str]:
        return node_selector(self.labels)


def role_resources(config: Config) -> dict[str, tuple[int, Resources]]:
    """Role -> (least number of actors, resources of each)."""
    return {role.name: (role.bounds(config)[0], resources_of(config, role.name)) for role in roles_of(config)}


def resources_of(config: Config, role: str) -> Resources:
    """The resources of one actor of a role; the run itself need not have that role."""
    place = _role(config, role)
    own = config.cluster.environment_runtime_env.for_ray() if role == "environment" else {}
    return Resources(place.cpus, place.gpus, place.accelerator_type, place.labels, runtime_env=own or None)


# -- the layout --------------------------------------------------------------------------------------------------


def bundle_of(config: Config, role: str, index: int = 0) -> Bundle:
    """The bundle that an actor runs in.

    `separate`: one bundle per actor; the learner's have whole GPUs, so that no world model shares them. `collocated`:
    imagination worker i shares one with reward worker i and rank i of the learner, with at most one GPU.

    Raises ConfigError if the roles that share a bundle ask for more than one GPU or for different nodes.
    """
    members = _members(config, role, index)
    places = {name: _role(config, name) for name, _ in members}
    gpus = sum(place.gpus for place in places.values())
    if len(members) > 1 and gpus > 1 + EPSILON:
        asked = " + ".join(f"placement.{name}.gpus={place.gpus:g}" for name, place in places.items())
        raise ConfigError(
            f"{asked} = {gpus:g} is more than the 1 GPU that they share in placement.layout=collocated; lower them "
            "or set placement.layout=separate"
        )
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"placement.{role}.gpus={gpus:g}: more than one GPU must be a whole number of them")
    if role == "learner" and config.placement.layout == "separate":
        gpus = math.ceil(gpus)
    return Bundle(
        "+".join(f"{name}-{i}" for name, i in members),
        members,
        round(sum(place.cpus for place in places.values()), 6),
        round(gpus, 6),
        _common_accelerator(places),
        _common_labels(places),
        config.cluster.learner_ranks if role == "learner" and config.placement.layout == "separate" else 1,
    )


def bundles_for(config: Config, sizes: Mapping[str, int]) -> list[Bundle]:
    """All bundles of a run with these numbers of workers per elastic role; other roles are included."""
    bundles: dict[Bundle, None] = {}
    for role in sorted(roles_of(config), key=lambda role: role.name in sizes):
        size = sizes.get(role.name, role.bounds(config)[0])
        bundles |= dict.fromkeys(bundle_of(config, role.name, index) for index in range(size))
    return [bundle for bundle in bundles if bundle.resources]


def smallest_bundles(config: Config) -> list[Bundle]:
    """The bundles of a run with the fewest workers that the configuration allows."""
    return bundles_for(config, {role: ROLES[role].bounds(config)[0] for role in elastic_roles(config)})


def largest_bundles(config: Config) -> list[Bundle]:
    """The bundles of a run with the most workers."""
    return bundles_for(config, {role: ROLES[role].bounds(config)[1] for role in elastic_roles(config)})


def _members(config: Config, role: str, index: int) -> tuple[tuple[str, int], ...]:
    if config.placement.layout == "separate" or not ROLES[role].is_collocated:
        return ((role, index),)
    most = {other.name: other.bounds(config)[1] for other in roles_of(config) if other.is_collocated}
    # A worker beyond the last rollout worker has none to share a bundle with.
    leader = rollout_role(config)
    alone = role != leader and index >= most.get(leader, 0)
    return ((role, index),) if alone else tuple((name, index) for name, count in most.items() if index < count)


def _role(config: Config, role: str) -> RolePlacement:
    return ROLES[role].placement(config)


def _common_accelerator(places: Mapping[str, RolePlacement]) -> str:
    asked = {name: place.accelerator_type for name, place in places.items() if place.accelerator_type}
    if len(set(asked.values())) > 1:
        conflict = ", ".join(f"placement.{name}.accelerator_type={value}" for name, value in asked.items())
        raise ConfigError(
            f"{conflict}: roles that share a GPU need the same; set them alike or placement.layout=separate"
        )
    return next(iter(asked.values()), "")


def _common_labels(places: Mapping[str, RolePlacement]) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(label for place in places.values() for label in place.labels))
    keys = [label.split("=", 1)[0] for label in labels]
    for label, key in zip(labels, keys, strict=True):
        if keys.count(key) > 1:
            conflict = ", ".join(f"placement.{name}.labels={list(place.labels)}" for name, place in places.items())
            raise ConfigError(f"{conflict}: no node has {label!r} and another {key!r}; set placement.layout=separate")
    return labels


# -- on Ray ------------------------------------------------------------------------------------------------------


class Reservation:
    """A bundle reserved on the cluster, or waiting for a node; never blocks. It ends with the driver at the latest."""

    def __init__(self, bundle: Bundle):
        selector = [bundle.label_selector] * bundle.siblings if bundle.labels else None
        shares = [bundle.resources] * bundle.siblings
        self._group = placement_group(shares, strategy="PACK", bundle_label_selector=selector)

    @property
    def place(self) -> tuple[Any, int]:
        """(placement group, index in it of the first sibling)."""
        return self._group, 0

    def release(self) -> None:
        """Release the bundle; Ray kills what still runs in it."""
        remove_placement_group(self._group)


class PlacementBook:
    """The reservations of a run. `reserve` is `Reservation` on Ray and None where nothing is reserved."""

    def __init__(self, config: Config, reserve: Callable[[Bundle], Any] | None):
        self.config = config
        self._reserve = reserve
        self._held: dict[Bundle, Any] = {}
        self._occupants: dict[Bundle, set[tuple[str, int]]] = {}

    def place(self, role: str, index: int = 0) -> Resources:
        """Resources to spawn an actor with. An actor keeps its reservation until it is released; never blocks."""
        resources = resources_of(self.config, role)
        bundle, share = self._reserved(role, index)
        if self._reserve is None or not bundle.resources:
            return resources
        if bundle not in self._held:
            self._held[bundle] = self._reserve(bundle)
        self._occupants.setdefault(bundle, set()).add((role, index))
        group, first = self._held[bundle].place
        return resources._replace(bundle=(group, first + share))

    def release(self, role: str, index: int = 0) -> None:
        """Retire an actor; its bundle is released with the last occupant. Idempotent."""
        bundle, _ = self._reserved(role, index)
        occupants = self._occupants.get(bundle, set())
        occupants.discard((role, index))
        if bundle in self._held and not occupants:
            self._occupants.pop(bundle)
            self._held.pop(bundle).release()

    def _reserved(self, role: str, index: int) -> tuple[Bundle, int]:
        """The bundle that was reserved, and the actor's index among its siblings."""
        bundle = bundle_of(self.config, role, index)
        return (bundle_of(self.config, role), index) if bundle.siblings > 1 else (bundle, 0)

    def close(self) -> None:
        while self._held:
            bundle, reservation = self._held.popitem()
            self._occupants.pop(bundle)
            reservation.release()


# -- capacity checks ---------------------------------------------------------------------------------------------


def check_placement(config: Config, available: Mapping[str, float], autoscaling: bool = False) -> None:
    """Raises UserError if the fewest actors need more than the cluster has: Ray would wait forever.

    Args:
        available: `{"CPU": ..., "GPU": ...}`, total over all nodes
        autoscaling: nodes are added on demand, so missing resources are no error
    """
    bundles = smallest_bundles(config)
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(getattr(bundle, field) for bundle in bundles)
        there = available.get(kind, 0.0)
        if needed > there + EPSILON and not autoscaling:
            roles = role_resources(config)
            per_role = ", ".join(f"{count} {role} x {getattr(r, field):g}" for role, (count, r) in roles.items())
            raise UserError(
                f"the actors ask for {needed:g} {kind}s ({per_role}) and there are {there:g}; lower "
                f"cluster.imagination_actors={config.cluster.imagination_actors} or placement.*.{kind.lower()}s, "
                "or use --serial"
            )


def placement_warnings(config: Config, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each accelerator or label that no living node has; actors that ask for it wait for such a node.

    Args:
        nodes: as `ray.nodes()` gives them
    """
    alive = [node for node in nodes if node["Alive"]]
    warnings = []
    for role in role_resources(config):
        place = _role(config, role)
        name = place.accelerator_type
        if name and not any(f"accelerator_type:{name}" in node["Resources"] for node in alive):
            warnings.append(f"placement.{role}.accelerator_type={name}: no node has one; {role} actors wait for it")
        for label in place.labels:
            key, value = label.split("=", 1)
            if not any(node["Labels"].get(key) == value for node in alive):
                warnings.append(f"placement.{role}.labels: no node has {label!r}; {role} actors wait for one")
    return warnings
