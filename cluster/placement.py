"""What each role asks of the cluster, and whether the cluster has it."""

from __future__ import annotations

from typing import NamedTuple

from wmpo_ray.config import Config
from wmpo_ray.config_cluster import RolePlacement, bounds
from wmpo_ray.errors import UserError


class Resources(NamedTuple):
    num_cpus: float = 0.0
    num_gpus: float = 0.0


def role_resources(config: Config) -> dict[str, tuple[int, Resources]]:
    """Role -> (number of actors at least, resources of each)."""
    cluster, placement = config.cluster, config.placement
    return {
        "imagination": (bounds(cluster.imagination_actors)[0], _resources(placement.imagination)),
        "reward": (bounds(cluster.reward_actors)[0], _resources(placement.reward)),
        "learner": (1, _resources(placement.learner)),
        "environment": (1, _resources(placement.environment)),
    }


def _resources(role: RolePlacement) -> Resources:
    return Resources(role.cpus, role.gpus)


def check_placement(config: Config, available: dict[str, float]) -> None:
    """UserError if the roles together ask for more than there is: Ray would wait for ever."""
    roles = role_resources(config)
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(count * getattr(resources, field) for count, resources in roles.values())
        there = available.get(kind, 0.0)
        if needed > there + 1e-6:
            per_role = ", ".join(f"{count} {role} x {getattr(r, field):g}" for role, (count, r) in roles.items())
            raise UserError(
                f"the actors ask for {needed:g} {kind}s ({per_role}) and there are {there:g}; lower "
                f"cluster.imagination_actors={config.cluster.imagination_actors} or placement.*.{kind.lower()}s, "
                "or use --serial"
            )
