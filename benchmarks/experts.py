"""How often the scripted experts of robosuite succeed, without and with noise: benchmarks/results/experts.json.

    python -m benchmarks.experts [--tasks Lift Stack] [--num 20] [--noise 0 0.1 0.2] [--checkout DIR]

Physics only, nothing is drawn. Noise is Gaussian, in units of an action (5 cm, 0.5 rad), on the six deltas of every
step. An episode ends at its first success or at the horizon of the task. The figures of each task and noise keep the
command, commit and machine that they were measured with. Tasks of MimicGen, such as Coffee_D0, need its checkout.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.results_file import merge_results
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.environments.mimicgen.mimicgen_environment import MimicGenEnvironment
from wmpo_ray.environments.mimicgen.mimicgen_settings import HORIZONS, MimicGenConfig
from wmpo_ray.environments.robosuite.experts import make_expert
from wmpo_ray.environments.robosuite.robosuite_environment import RobosuiteEnvironment
from wmpo_ray.environments.robosuite.robosuite_settings import RobosuiteConfig
from wmpo_ray.environments.robosuite.simulator import Simulator

TASKS = ("Lift", "Stack", "NutAssemblySquare")
FIRST_SEED = 1000  # the scripts were written with seeds below


def make_environment(task: str, checkout: str) -> RobosuiteEnvironment:
    if task in HORIZONS:
        return MimicGenEnvironment(MimicGenConfig(task=task, checkout=checkout))
    return RobosuiteEnvironment(RobosuiteConfig(task=task))


def steps_until_success(simulator: Simulator, task: str, seed: int, noise: float, horizon: int) -> int | None:
    """None where the episode of this seed does not succeed."""
    simulator.place(seed)
    expert, rng = make_expert(task), np.random.default_rng(seed)
    expert.reset(simulator.env)
    for step in range(horizon):
        action = expert.act()
        action[:-1] += rng.normal(0, noise, len(action) - 1)
        simulator.step(np.clip(action, -1, 1))
        simulator.refresh()
        if simulator.succeeded():
            return step + 1
    return None


def figures_of(found: list[int | None], horizon: int) -> dict[str, dict[str, Any]]:
    steps = [number for number in found if number is not None]
    interval = list(wilson_interval(len(steps), len(found)))
    figures: dict[str, dict[str, Any]] = {
        "success": {
            "value": len(steps) / len(found),
            "unit": f"of {len(found)} seeds within {horizon} steps",
            "interval": interval,
            "seeds": [float(number is not None) for number in found],
        }
    }
    if steps:
        figures["mean_steps"] = {"value": float(np.mean(steps)), "unit": "steps of 1/20 s until success"}
        figures["max_steps"] = {"value": max(steps), "unit": "steps of 1/20 s until success"}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--num", type=int, default=20, help="episodes of each task and noise")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    parser.add_argument("--checkout", default="", help="folder of a checkout of NVIDIA's MimicGen")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        environment = make_environment(task, arguments.checkout)
        simulator, horizon = environment.simulator(), environment.horizon
        for noise in arguments.noise:
            seeds = range(FIRST_SEED, FIRST_SEED + arguments.num)
            found = []
            for seed in seeds:
                found.append(steps_until_success(simulator, task, seed, noise, horizon))
                print(f"{task} noise {noise:g} seed {seed}: {found[-1] or 'no success'}", flush=True)
            command = f"python -m benchmarks.experts --tasks {task} --num {arguments.num} --noise {noise:g}"
            path = merge_results("experts", f"{task}/noise_{noise:g}", figures_of(found, horizon), command)
            print(
                f"{task} noise {noise:g}: {sum(n is not None for n in found)}/{len(found)}, steps {found}", flush=True
            )
    print(path)


if __name__ == "__main__":
    main()
