"""Success of Meta-World's scripted policies in the environments that the product makes of its tasks.

    python -m benchmarks.metaworld_experts [TASK ...]

Every task is begun from held-out seeds, the same for all, and acted in by its script without noise, an action for every
four steps of the simulator, until it succeeds or 500 steps are over. Needs the extra `metaworld`.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from benchmarks.results_file import write_results
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.environments.metaworld.metaworld_settings import MetaWorldConfig
from wmpo_ray.environments.metaworld.metaworld_tasks import TASKS
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert

NUM_SEEDS, ACTION_REPEAT, NUM_STEPS = 20, 4, 500


def measure(task: str) -> dict[str, dict]:
    """Figures of a task by name."""
    section = MetaWorldConfig(task=task, horizon=NUM_STEPS // ACTION_REPEAT, action_repeat=ACTION_REPEAT, image_size=4)
    environment = make_environment(section)
    begun = time.perf_counter()
    episodes = rollout_expert(environment, start_seeds("evaluate", NUM_SEEDS, 0), 0.0, (0, "experts"))
    seconds = time.perf_counter() - begun
    environment.close()
    num = int(episodes.success.sum())
    figures = {
        f"{task}_expert_success": {
            "value": num / NUM_SEEDS,
            "unit": "share",
            "interval": list(wilson_interval(num, NUM_SEEDS)),
            "seeds": NUM_SEEDS,
        }
    }
    if num:
        median = float(np.median(episodes.lengths[episodes.success]))
        figures[f"{task}_median_actions"] = {"value": median, "unit": "actions of a success"}
    print(f"{task:30} {num}/{NUM_SEEDS} {seconds:6.1f} s", flush=True)
    return figures


def main(tasks: list[str]) -> None:
    figures: dict[str, dict] = {}
    for task in tasks or TASKS:
        figures |= measure(task)
    shares = [figure["value"] for name, figure in figures.items() if name.endswith("_expert_success")]
    figures["num_tasks"] = {"value": len(shares), "unit": "tasks"}
    figures["num_tasks_over_90_percent"] = {"value": sum(share >= 0.9 for share in shares), "unit": "tasks"}
    command = " ".join(["python -m benchmarks.metaworld_experts", *tasks])
    print(write_results("metaworld_experts", figures, command))


if __name__ == "__main__":
    main(sys.argv[1:])
