"""What a process of each role holds at most: on its GPU if it has one, else in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmpo_ray.algorithms.batching import blocks_of
from wmpo_ray.config.run import Config
from wmpo_ray.planning.costs import PolicyCost, RewardModelCost, WorldModelCost

WEIGHT_BYTES = 4  # float32
MOMENTS = 2  # of AdamW
CLIPS_PER_BATCH = 64
FRAME_BYTES = 8 * 256 * 256 * 3  # of one frame while it is resized, in float64


@dataclass(frozen=True)
class MemoryPart:
    name: str
    bytes: float


@dataclass(frozen=True)
class RoleMemory:
    """One process of a role; `parts` that are nothing are left out."""

    role: str
    parts: tuple[MemoryPart, ...]

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)


def imagination_memory(config: Config, policy: PolicyCost, world: WorldModelCost | None) -> RoleMemory:
    """A replica of the policy and a world model, with the trajectories that are under way at once."""
    batch = config.rollout.slots or config.rollout.request_size
    parts = [
        MemoryPart("policy weights", policy.num_parameters * replica_bytes(config)),
        MemoryPart("acting", batch * policy.acting_bytes),
    ]
    return _role("imagination", [*parts, *_world_parts(config, world, batch)])


def reward_memory(config: Config, reward: RewardModelCost, verifier: WorldModelCost | None) -> RoleMemory:
    """The reward model and, where successes are verified, the world model that imagines them again."""
    batch = config.rollout.request_size
    frames = batch * (config.rollout_horizon + 1)
    parts = [
        MemoryPart("reward model weights", reward.num_parameters * WEIGHT_BYTES),
        MemoryPart("judging", min(CLIPS_PER_BATCH, frames) * reward.judging_bytes),
    ]
    return _role("reward", [*parts, *_world_parts(config, verifier, batch)])


def learner_memory(config: Config, policy: PolicyCost) -> RoleMemory:
    """One rank: weights, gradients and optimizer state are shared among the ranks (FSDP2), activations are its own."""
    ranks = config.cluster.learner_ranks
    trained = policy.num_trained * WEIGHT_BYTES / ranks
    weights = policy.num_parameters * WEIGHT_BYTES / ranks
    decisions = decisions_per_pass(config)
    parts = [
        MemoryPart("weights, float32", weights),
        MemoryPart("gradients", trained),
        MemoryPart("optimizer state", MOMENTS * trained),
        MemoryPart("weights as computed with", _computed_bytes(config, policy)),
        MemoryPart("activations", decisions * policy.held_bytes + _working_bytes(config, policy, decisions)),
        MemoryPart("earlier versions", config.max_staleness * weights),
    ]
    return _role("learner", parts)


def replica_bytes(config: Config) -> int:
    """Of one weight in a replica of the policy."""
    return 2 if config.policy.compute_dtype == config.weights.dtype == "bfloat16" else WEIGHT_BYTES


def decisions_per_pass(config: Config) -> int:
    """How many decisions one rank takes through a forward and a backward pass at once."""
    share = math.ceil(blocks_of(config).size * config.num_decisions / config.cluster.learner_ranks)
    return min(share, config.training.chunks_per_pass or share)


def _computed_bytes(config: Config, policy: PolicyCost) -> float:
    """The copy in bfloat16: of all that is trained in one process, of what is gathered at once where ranks share."""
    if config.policy.compute_dtype == "float32":
        return 0.0
    alone = config.cluster.learner_ranks == 1
    return 2 * (policy.num_trained if alone else policy.num_gathered)


def _working_bytes(config: Config, policy: PolicyCost, decisions: int) -> float:
    """A layer's activations while they are computed again."""
    return decisions * policy.block_bytes if config.policy.gradient_checkpointing else 0.0


def _world_parts(config: Config, world: WorldModelCost | None, batch: int) -> list[MemoryPart]:
    if world is None:
        return []
    halves = 2 if world.halves else WEIGHT_BYTES
    return [
        MemoryPart("world model weights", world.num_parameters * WEIGHT_BYTES),
        MemoryPart("autoencoder weights", world.num_codec_parameters * halves),
        MemoryPart("conditioning cache", batch * world.cache_bytes),
        MemoryPart("denoising", batch * world.denoise_bytes),
        MemoryPart("decoding", world.decode_bytes),
    ]


def _role(role: str, parts: list[MemoryPart]) -> RoleMemory:
    return RoleMemory(role, tuple(part for part in parts if part.bytes))
