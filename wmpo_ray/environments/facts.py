"""What is known of an environment without making it: a plan, or the loading of a model, needs no simulator."""

from __future__ import annotations

from typing import NamedTuple

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown


class EnvironmentFacts(NamedTuple):
    frame_shape: tuple[int, int, int]  # H, W, 3
    action_dim: int
    instructions: tuple[str, ...]  # every one that an episode may have


# The instruction is what the published policies were trained with: for most tasks no more than the task's name.
MIMICGEN_INSTRUCTIONS = {
    "Coffee_D0": "coffee",
    "StackThree_D0": "stack_three",
    "ThreePieceAssembly_D0": "three_piece_assembly",
    "Square_D0": "Insert the square into the stick",
}
# Six end-effector deltas and the gripper; frames as the published world models have them.
MIMICGEN_FRAME_SHAPE, MIMICGEN_ACTION_DIM = (256, 256, 3), 7
# The real robot: recorded episodes of the same size, of which no environment can be made.
ALOHA = EnvironmentFacts((256, 256, 3), 7, ("Insert the square into the stick",))


def environment_facts(config: EnvironmentConfig) -> EnvironmentFacts:
    """Raises ConfigError for a kind or a task that nothing is known of."""
    if config.kind == "pocket":
        from wmpo_ray.environments.pocket.env import PocketEnvironment

        return EnvironmentFacts(
            PocketEnvironment.frame_shape, PocketEnvironment.action_dim, PocketEnvironment.instructions
        )
    if config.kind == "aloha":
        return ALOHA
    if config.kind != "mimicgen":
        raise ConfigError(f"environment.kind={shown(config.kind)}: known are aloha, mimicgen and pocket")
    if config.task not in MIMICGEN_INSTRUCTIONS:
        known = ", ".join(MIMICGEN_INSTRUCTIONS)
        raise ConfigError(f"environment.task={shown(config.task)}: known tasks of mimicgen are {known}")
    return EnvironmentFacts(MIMICGEN_FRAME_SHAPE, MIMICGEN_ACTION_DIM, (MIMICGEN_INSTRUCTIONS[config.task],))
