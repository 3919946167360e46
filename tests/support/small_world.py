"""Small real world models with random weights, for laws that hold for any weights."""

import numpy as np
import torch

from benchmarks.pretrain_embedded import DENOISER
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, DiffusionConfig, NetworkConfig, SamplerConfig

NETWORK = NetworkConfig(hidden_size=24, depth=2, num_heads=2, mlp_ratio=2.0)
# That of the shipped world models, on actions alone and in full precision.
EMBEDDED = DENOISER.model_copy(
    update={
        "action_bands": 2,
        "action_map": False,
        "pure_noise_share": 0.5,
        "precision": "fp32",
    }
)


def small_world_model(denoiser: DenoiserConfig = EMBEDDED, num_steps: int = 2, seed: int = 0) -> DiffusionWorldModel:
    """c = 2, K = 4, with an output layer that is not zero."""
    config = DiffusionConfig(
        pretrained="", network=NETWORK, denoiser=denoiser, sampler=SamplerConfig(num_steps=num_steps)
    )
    world_model = DiffusionWorldModel.create(config, action_dim=3, chunk_length=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weight = world_model.denoiser.network.final_layer.linear.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    world_model.denoiser.network.eval()
    return world_model


def scene_starts(num: int, first_seed: int = 0) -> list[StartState]:
    env = PocketEnvironment()
    seeds = range(first_seed, first_seed + num)
    frames = env.reset(list(seeds))
    return [StartState(f[None], text, seed) for f, text, seed in zip(frames, env.instruction, seeds, strict=True)]


def random_chunk(num: int, seed: int = 0) -> torch.Tensor:
    """Actions [num, 4, 3] float32."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (num, 4, 3)).astype(np.float32))


class CountedWorld:
    """Counts the rows that the world behind it steps."""

    def __init__(self, world):
        self.world, self.num_rows = world, 0
        self.chunk_length, self.context_frames, self.abilities = (
            world.chunk_length,
            world.context_frames,
            world.abilities,
        )

    def start(self, starts):
        return self.world.start(starts)

    def step_chunk(self, state, actions, seeds, frames="all"):
        self.num_rows += len(actions)
        return self.world.step_chunk(state, actions, seeds, frames)
