"""The roles of a training run: the one table that team, placement, elasticity, planning and reports read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from wmpo_ray.config.cluster import RolePlacement, Size, bounds
from wmpo_ray.config.run import Config


@dataclass(frozen=True)
class Role:
    name: str  # also of its section of `placement`
    actor: str  # "module:Class" of the process that plays it
    models: tuple[str, ...]  # folders that its constructor takes, by their names in `ModelPaths`
    size: Callable[[Config], Size]  # a fixed number of actors, or (min, max)
    is_collocated: bool = True  # shares the GPU of its neighbours in placement.layout=collocated
    is_single: bool = False  # one worker to the driver, however many processes it has

    def bounds(self, config: Config) -> tuple[int, int]:
        """(fewest, most) actors."""
        return bounds(self.size(config))

    def placement(self, config: Config) -> RolePlacement:
        """What one actor of the role asks for."""
        return getattr(config.placement, self.name)

    def rolls_out(self, config: Config) -> bool:
        """Whether it acts with the newest weights, and therefore has to hold them."""
        return self.name == rollout_role(config)


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role(
                "imagination",
                "actors.rollout_actor:RolloutActor",
                ("policy", "world_model", "reward_model", "verifier"),
                lambda config: config.cluster.imagination_actors,
            ),
            Role(
                "reward",
                "actors.reward_actor:RewardActor",
                ("reward_model", "verifier"),
                lambda config: config.cluster.reward_actors,
            ),
            Role(
                "learner",
                "learners.policy_learner:PolicyLearner",
                ("policy", "checkpoints"),
                lambda config: config.cluster.learner_ranks,
                is_single=True,
            ),
            Role(
                "environment",
                "actors.environment_actor:EnvironmentActor",
                ("policy",),
                lambda config: config.cluster.environment_actors,
                is_collocated=False,
            ),
        )
    }
)


def roles_of(config: Config) -> tuple[Role, ...]:
    """The roles that a run has: without imagination there are no world model workers, and the world itself judges.

    Where imagination judges as it goes there are no reward workers either. An algorithm that learns from recorded episodes needs only a learner.
    """
    if config.training.source == "offline":
        return (ROLES["learner"],)
    needless = set() if config.rollout.world == "imagination" else {"imagination", "reward"}
    needless |= {"reward"} if config.judges_while_imagining else set()
    return tuple(role for role in ROLES.values() if role.name not in needless)


def rollout_role(config: Config) -> str:
    """The role whose actors make the rollouts that the policy is trained on."""
    return config.rollout.world


def elastic_roles(config: Config) -> tuple[str, ...]:
    """The roles whose number follows the measured rates, those that make the rollouts first."""
    return tuple(role.name for role in roles_of(config) if role.rolls_out(config) or role.name == "reward")
