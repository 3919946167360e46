"""Success of Meta-World's scripted policies in the environments that the product makes of its tasks.

    python -m benchmarks.metaworld_experts [TASK ...]

Every task is begun from the same held-out seeds and acted in by its script, without noise and without pictures, until it
succeeds or 500 steps of the simulator are over: with an action for every four steps, which is the default, and where that
succeeds less often than 90% also with one for every step. Needs the extra `metaworld`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.results_file import write_results
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.environments.metaworld.metaworld_settings import MetaWorldConfig
from wmpo_ray.environments.metaworld.metaworld_tasks import TASKS
from wmpo_ray.registry import make_environment

NUM_SEEDS, NUM_STEPS, BAR = 20, 500, 0.9
DEFAULT_REPEAT = MetaWorldConfig().action_repeat


def successes(task: str, action_repeat: int) -> tuple[int, list[int]]:
    """How many of the held-out starts, and the actions that each success took."""
    horizon = NUM_STEPS // action_repeat
    environment: Any = make_environment(MetaWorldConfig(task=task, horizon=horizon, action_repeat=action_repeat))
    environment.restore(seeded_starts(start_seeds("evaluate", NUM_SEEDS, 0)))
    rng, lengths = np.random.default_rng(0), np.zeros(NUM_SEEDS, int)
    for _ in range(horizon):
        lengths += ~environment.terminated
        environment.advance(environment.expert_action(rng))
    success = environment.success.copy()
    environment.close()
    print(f"{task:30} {success.sum()}/{NUM_SEEDS} with an action for {action_repeat} steps", flush=True)
    return int(success.sum()), lengths[success].tolist()


def figures_of(task: str) -> dict[str, dict[str, Any]]:
    num, lengths = successes(task, DEFAULT_REPEAT)
    figures = {f"{task}/expert_success": share(num)}
    if lengths:
        figures[f"{task}/actions_median"] = {"value": float(np.median(lengths)), "unit": "actions of a success"}
    if num < BAR * NUM_SEEDS:
        figures[f"{task}/expert_success_every_step"] = share(successes(task, 1)[0])
    return figures


def share(num: int) -> dict[str, Any]:
    interval = list(wilson_interval(num, NUM_SEEDS))
    return {"value": num / NUM_SEEDS, "unit": "share", "interval": interval, "seeds": NUM_SEEDS}


def main(tasks: list[str]) -> None:
    figures: dict[str, dict[str, Any]] = {}
    for task in tasks or TASKS:
        figures |= figures_of(task)
    shares = [figure["value"] for name, figure in figures.items() if name.endswith("/expert_success")]
    figures["num_tasks"] = {"value": len(shares), "unit": "tasks"}
    figures["num_tasks_of_90_percent"] = {"value": sum(value >= BAR for value in shares), "unit": "tasks"}
    print(write_results("metaworld_experts", figures, " ".join(["python -m benchmarks.metaworld_experts", *tasks])))


if __name__ == "__main__":
    main(sys.argv[1:])
