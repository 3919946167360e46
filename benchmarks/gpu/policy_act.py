"""Policy decisions a second: frames to sampled action chunks, image pipeline and tokens on the host included.

python -m benchmarks.gpu.policy_act [--size full|small] [--batches 8,16,32,64]
"""

from __future__ import annotations

import argparse

from benchmarks.gpu.measuring import Bench, integers, random_frames
from benchmarks.gpu.setups import config_of, instruction, make_policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.costs import policy_cost


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=integers, default=[8, 16, 32, 64])
    parser.add_argument("--repetitions", type=int, default=3)


def main() -> None:
    bench = Bench("policy_act", __doc__, options)
    config = config_of(bench.size, bench.folder)
    facts = environment_facts(config.environment)
    cost = policy_cost(config, facts)
    ceiling = bench.ceiling()
    bench.add("tflop_per_chunk", cost.tflop, f"TFLOP, {cost.num_parameters} parameters")
    policy = make_policy(config, bench.device, bench.dtype)
    for batch in bench.arguments.batches:
        frames = random_frames((batch, *facts.frame_shape)).numpy()
        seen, seeds = Observation.of(frames, [instruction()] * batch), list(range(batch))

        def act(seen=seen, seeds=seeds, batch=batch) -> None:
            seconds = bench.seconds(lambda: policy.act(seen, 1.6, seeds), bench.arguments.repetitions)
            tflops = batch * cost.tflop / seconds
            bench.add(f"batch_{batch}_chunks_per_s", batch / seconds, "chunks/s")
            bench.add(f"batch_{batch}_tflops", tflops, "TFLOP/s", share_of_ceiling=tflops / ceiling)

        if not bench.fits(act, f"batch_{batch}"):
            break
    bench.peak_memory("peak_memory")
    bench.save()


if __name__ == "__main__":
    main()
