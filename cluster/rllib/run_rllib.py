"""`wmpo rllib`: from a run's folder to a trained, evaluated policy beside the run's own."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from cluster.events.progress import Reporter
from cluster.host.job import cluster_address
from cluster.recipes.evaluate import evaluate_policy
from cluster.recipes.reuse.fork import hold
from cluster.rllib.imagined_training import Plan, check, save_weights, spent_chunks, train
from cluster.runtimes.start import start_runtime
from wmpo_ray.core.files import atomic_directory, atomic_write
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.report.html import write_report
from wmpo_ray.runs.other_learners import OUTCOMES, RESULT


def train_in_imagination(plan: Plan, num_starts: int | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train, evaluate on the held-out starts of the run, write `rllib/LABEL` and the report; returns the result.

    Nothing of it is there unless all of it is. Raises UserError where the run lacks a stage, is in use, has a training of
    that name, or the settings do not suit.
    """
    check(plan)
    configure_process(plan.config.cluster.threads_per_process)
    with ExitStack() as until_done:
        hold(plan.run, until_done)
        runtime = start_runtime(False, cluster_address(plan.config))
        try:
            with Reporter(console).bar(f"{plan.algorithm} in imagination, chunks", plan.num_chunks) as advance:
                result, weights = train(plan, advance)
        finally:
            runtime.shutdown()
        plan.folder.parent.mkdir(exist_ok=True)
        with atomic_directory(plan.folder) as folder:
            save_weights(plan, weights, folder / "policy")
            real = evaluate_policy(plan.config, plan.run, folder / "policy", num_starts, console)
            atomic_write(folder / OUTCOMES, json.dumps(real["outcomes"]))
            result |= {"success": real["success"], "real_episodes": plan.config.collect.num_trajectories}
            result["own_frames"] = spent_chunks(plan.run, plan.config) * plan.config.rollout.chunk_length
            atomic_write(folder / RESULT, json.dumps(result, indent=1) + "\n")
        write_report(plan.run)
    return {**result, "folder": str(plan.folder)}
