"""Imagined frames a second: one chunk of a batch of trajectories, from context latents to frames on the host.

    python -m benchmarks.gpu.imagination [--size full|small] [--steps 30,10,5] [--batches 8,16,32,64]

`plain` runs the whole clip in every denoising step, `cached` the conditioning frames once, `compiled` the latter with
torch.compile. The decoding is part of every figure.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring import Bench, integers, random_frames
from benchmarks.gpu.setups import config_of, make_world_model
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.costs import WorldModelCost, world_model_cost
from wmpo_ray.world_models.denoiser import TIME_SCALE, Conditioning, Denoiser
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import SamplerConfig

MODES = ("plain", "cached", "compiled")


class WholeClipDenoiser(Denoiser):
    """The published path: conditioning frames go through the network in every step."""

    def condition(self, context: Tensor, noise: Tensor | None = None) -> Conditioning:
        return Conditioning(context, context[:, :, -1:])  # type: ignore[arg-type]  kept as it is

    def velocity(self, noisy: Tensor, t: Tensor, actions: Tensor, conditioning: Conditioning) -> Tensor:
        context: Any = conditioning.cache
        clip = torch.cat([context, noisy], 2)
        is_denoised = torch.arange(clip.shape[2], device=clip.device) >= context.shape[2]
        output = self.network(clip, t * TIME_SCALE, actions, is_denoised.expand(len(clip), -1), *self.frame_size)
        return output[:, : noisy.shape[1], context.shape[2] :]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=integers, default=[30, 10, 5])
    parser.add_argument("--batches", type=integers, default=[8, 16, 32, 64])
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--repetitions", type=int, default=1)


def chunk_tflop(cost: WorldModelCost, mode: str, num_steps: int) -> float:
    """Of one trajectory, decoding included."""
    whole = cost.condition_tflop + cost.step_tflop
    denoise = num_steps * whole if mode == "plain" else cost.condition_tflop + num_steps * cost.step_tflop
    return denoise + cost.chunk_length * cost.decode_tflop


def measure(bench: Bench, world: DiffusionWorldModel, cost: WorldModelCost, mode: str, ceiling: float) -> None:
    config = config_of(bench.size, bench.folder)
    facts = environment_facts(config.environment)
    for num_steps in bench.arguments.steps:
        sampled = world.with_sampler(SamplerConfig(num_steps=num_steps))
        for batch in bench.arguments.batches:
            frames = random_frames((world.context_frames, *facts.frame_shape)).numpy()
            state, _ = sampled.start([StartState(frames, "")] * batch)
            actions = torch.zeros(batch, world.chunk_length, facts.action_dim)
            seeds = list(range(batch))
            key = f"{mode}_{num_steps}_steps_batch_{batch}"

            def imagine(sampled=sampled, state=state, actions=actions, seeds=seeds, key=key, batch=batch) -> None:
                world.with_sampler(SamplerConfig(num_steps=1)).step_chunk(state, actions, seeds)  # warms up
                seconds = bench.seconds(
                    lambda: sampled.step_chunk(state, actions, seeds), bench.arguments.repetitions, warmups=0
                )
                tflops = batch * chunk_tflop(cost, mode, sampled.sampler.config.num_steps) / seconds
                bench.add(f"{key}_frames_per_s", batch * world.chunk_length / seconds, "frames/s")
                bench.add(f"{key}_tflops", tflops, "TFLOP/s", share_of_ceiling=tflops / ceiling)

            if not bench.fits(imagine, key):
                break
    bench.peak_memory(f"{mode}_peak_memory")


def main() -> None:
    bench = Bench("imagination", __doc__, options)
    config = config_of(bench.size, bench.folder)
    cost = world_model_cost(config, environment_facts(config.environment), config.world_model.pretrained)
    assert cost is not None
    ceiling = bench.ceiling()
    bench.add("matmul_ceiling", ceiling, f"TFLOP/s, {str(bench.dtype).removeprefix('torch.')}")
    bench.add("tflop_per_chunk_30_steps", chunk_tflop(cost, "cached", 30), f"TFLOP, {cost.num_parameters} parameters")
    cached = make_world_model(config, bench.device, bench.dtype)
    denoiser = WholeClipDenoiser(cached.denoiser.network, cached.denoiser.config, cached.denoiser.frame_size)
    plain = DiffusionWorldModel(denoiser, cached.codec, cached.sampler, cached.context_frames, cached.chunk_length)
    for mode in bench.arguments.modes.split(","):
        if mode == "compiled":
            cached.denoiser.network.compile_repeated_blocks()
        measure(bench, plain if mode == "plain" else cached, cost, mode, ceiling)
    bench.save()


if __name__ == "__main__":
    main()
