"""One optimizer step of the policy: forward, backward, clipping, AdamW; tokens a second and model FLOP utilisation.

    python -m benchmarks.gpu.learner_step [--size full|small] [--modes lora,full_bf16,full_fp32] [--decisions 8,16]

`lora`: adapters of rank 32 on frozen bfloat16 weights. `full_bf16`: all weights, gradients and moments in bfloat16, which
fits on one card but is no way to train at a learning rate of 5e-6. `full_fp32`: float32 masters computing in bfloat16 as
in training; 18 bytes a parameter of 7.5 billion fit on no card of 141 GB, so it runs with half of the language model's
layers, and on several cards its state is shared (FSDP2). Utilisation counts a forward and a backward pass as the model
needs them, not what gradient checkpointing computes again, against the measured ceiling of matrix products.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.measuring import Bench, integers, random_frames
from benchmarks.gpu.setups import config_of, instruction, make_policy
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.blueprints import policy_blueprint
from wmpo_ray.planning.costs import PolicyCost, cost_of_policy
from wmpo_ray.policies.openvla.openvla_kind import PROMPT_LENGTH

MODES = ("lora", "full_bf16", "full_fp32")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--decisions", type=integers, default=[8, 16, 32])
    parser.add_argument("--repetitions", type=int, default=3)


@contextmanager
def measured_policy(bench: Bench, config: Config, mode: str) -> Iterator[tuple[Any, PolicyCost, int]]:
    """A policy in training, the cost of a decision without recomputation, and its language model's layers."""
    blueprint = policy_blueprint(config, environment_facts(config.environment))
    layers = blueprint.depths[2] // 2 if mode == "full_fp32" else blueprint.depths[2]
    dtype = torch.float32 if mode == "full_fp32" else bench.dtype
    policy = make_policy(config, bench.device, dtype, layers)
    policy.config.compute_dtype = "bfloat16"
    if mode != "lora":
        policy.requires_grad_(True)
    policy.activation_checkpointing_enable({"use_reentrant": False})
    policy.eval()
    shallower = blueprint._replace(depths=(*blueprint.depths[:2], layers))
    yield policy, cost_of_policy(shallower, torch.bfloat16, config.trained_parameters, checkpointing=False), layers


def sequence_length(policy: Any) -> int:
    patches = policy.vision_backbone.featurizer.num_patches
    return PROMPT_LENGTH + patches + policy.chunk_length * policy.action_dim + 1


def measure(bench: Bench, config: Config, mode: str, ceiling: float) -> None:
    facts = environment_facts(config.environment)
    with measured_policy(bench, config, mode) as (policy, cost, layers):
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, 5e-6, weight_decay=0.0)
        bench.add(f"{mode}_trained_parameters", cost.num_trained, f"of {cost.num_parameters}, {layers} layers")
        for decisions in bench.arguments.decisions:
            frames = random_frames((decisions, *facts.frame_shape)).numpy()
            seen = Observation.of(frames, [instruction()] * decisions)
            length = policy.chunk_length * policy.action_dim
            record = {"tokens": torch.full((decisions, length), policy.first_action_id)}

            def step(seen=seen, record=record) -> None:
                optimizer.zero_grad(set_to_none=True)
                policy.log_prob(seen, record, 1.6).mean().neg().backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

            def timed(step=step, decisions=decisions) -> None:
                seconds = bench.seconds(step, bench.arguments.repetitions)
                tflops = decisions * cost.training_tflop / seconds
                key = f"{mode}_{decisions}_decisions"
                bench.add(f"{key}_tokens_per_s", decisions * sequence_length(policy) / seconds, "tokens/s")
                bench.add(f"{key}_mfu", tflops / ceiling, "share of the measured ceiling", tflops=tflops)

            if not bench.fits(timed, f"{mode}_{decisions}"):
                break
    bench.peak_memory(f"{mode}_peak_memory")


def main() -> None:
    bench = Bench("learner_step", __doc__, options)
    ceiling = bench.ceiling()
    for mode in bench.arguments.modes.split(","):
        rank = 32 if mode == "lora" else 0
        config = config_of(bench.size, bench.folder, f"policy.openvla.lora_rank={rank}")
        try:
            measure(bench, config, mode, ceiling)
        except ConfigError as error:  # the package of the adapters is optional
            if mode != "lora":
                raise
            print(f"learner_step/lora is left out: {error}", flush=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    bench.save()


if __name__ == "__main__":
    main()
