"""The stage `policy`: behaviour cloning of the demonstrations, or an unchanged pretrained policy."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_pretrained, check_workers
from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from cluster.recipes.trainings import run_trainings
from learners.supervised.jobs import CloningJob, EpisodeSource, Training
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.registry import pretrained_policy


def policy(context: RunContext) -> dict[str, Any]:
    """Save the base policy in `models/base-policy`."""
    config, out = context.config, context.model("base-policy").absolute()
    if not config.policy.cloning.steps:
        network = pretrained_policy(config)
        with atomic_directory(out) as folder:
            network.save_pretrained(folder)
        return {"pretrained": config.policy.pretrained}

    def describe(source: EpisodeSource) -> list[Training]:
        demos = source.read("demos", context.trajectory_file("demos"))
        job = CloningJob(config, demos, out)
        return [Training("policy", "behaviour cloning", "policy.cloning", config.policy.cloning, "learner", job)]

    return run_trainings(context, describe)["policy"]


def check(config: Config, serial: bool) -> None:
    check_pretrained("policy.pretrained", config.policy.pretrained)
    check_workers(config, "policy.cloning", config.policy.cloning, serial)


POLICY = Stage(
    "policy",
    policy,
    needs=("demos",),
    makes=("models/base-policy", "curves/policy.jsonl"),
    settings=("policy", "rollout.chunk_length"),
    state=("checkpoints/policy",),
    check=check,
)
