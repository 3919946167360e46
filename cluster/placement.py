"""What each role asks of the cluster, and whether the cluster has it."""

from __future__ import annotations

from typing import NamedTuple

from wmpo_ray.config import ClusterConfig
from wmpo_ray.errors import UserError


class Resources(NamedTuple):
    num_cpus: float = 0.0
    num_gpus: float = 0.0


def role_resources(config: ClusterConfig) -> dict[str, tuple[int, Resources]]:
    """Role -> (number of actors, resources of each). The environment actor only evaluates: it waits for free time."""
    return {
        "imagination": (
            config.imagination_actors,
            Resources(config.cpus_per_imagination_actor, config.gpus_per_imagination_actor),
        ),
        "reward": (config.reward_actors, Resources(config.cpus_per_reward_actor, config.gpus_per_reward_actor)),
        "learner": (1, Resources(config.cpus_per_learner, config.gpus_per_learner)),
        "environment": (1, Resources()),
    }


def check_placement(config: ClusterConfig, available: dict[str, float]) -> None:
    """UserError if the roles together ask for more than there is: Ray would wait for ever."""
    roles = role_resources(config)
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(count * getattr(resources, field) for count, resources in roles.values())
        there = available.get(kind, 0.0)
        if needed > there + 1e-6:
            per_role = ", ".join(f"{count} {role} x {getattr(r, field):g}" for role, (count, r) in roles.items())
            raise UserError(
                f"the actors ask for {needed:g} {kind}s ({per_role}) and there are {there:g}; lower "
                f"cluster.imagination_actors={config.imagination_actors} or cluster.{kind.lower()}s_per_*, "
                "or use --serial"
            )
