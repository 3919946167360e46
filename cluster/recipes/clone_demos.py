"""The stages of `bc-expert`: every round records more demonstrations, and the policy is cloned from all of them.

The baseline of lifelong learning. A round takes as many episodes of the expert as other recipes collect of their policy,
from the same start states.
"""

from __future__ import annotations

from typing import Any

from cluster.recipes.clone import POLICY
from cluster.recipes.context import RunContext
from cluster.recipes.simulator_needs import always
from cluster.recipes.stage import Stage
from cluster.recipes.trainings import run_trainings
from cluster.recording.parts import parts_folder
from learners.supervised.jobs import CloningJob, EpisodeSource, Training
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data.episodes import concatenate_episodes


def more_demos(context: RunContext) -> dict[str, Any]:
    """Record this round's demonstrations in `trajectories/more-demos.parquet`."""
    config = context.config
    seeds = start_seeds("collect", config.collect.num_trajectories, config.seed)
    with context.recorder("more-demos") as recorder:
        recorder.record_expert("more-demos", seeds, (config.seed, "more-demos"), context.trajectory_file("more-demos"))
    episodes = context.episodes("more-demos")
    return {"num": len(episodes), "success": float(episodes.success.mean()), "restarted": recorder.num_restarts}


def clone_demos(context: RunContext) -> dict[str, Any]:
    """Clone the demonstrations of the run and of all rounds so far, as the base policy was; saved in `models/policy`."""
    config, out = context.config, context.model("policy").absolute()

    def describe(source: EpisodeSource) -> list[Training]:
        demos = [source.read("demos", context.trajectory_file("demos"))]
        demos += [source.read(f"more-demos-{n}", path) for n, path in enumerate(context.files_so_far("more-demos"))]
        job = CloningJob(config, concatenate_episodes(demos), out)
        return [Training("cloning", "behaviour cloning", "policy.cloning", config.policy.cloning, "learner", job)]

    return run_trainings(context, describe)["cloning"]


def suits(config: Config) -> None:
    """Raises ConfigError where nothing is cloned, or a policy is wanted that is never measured."""
    if config.evaluation.final_policy == "best":
        raise ConfigError(
            f'evaluation.final_policy = "best": the recipe "{config.recipe.kind}" measures no success on the way; set '
            'evaluation.final_policy to "last"'
        )
    if not config.policy.cloning.steps:
        raise ConfigError(
            f'policy.cloning.steps = 0: the recipe "{config.recipe.kind}" clones in every round; set policy.cloning.steps'
        )


MORE_DEMOS = Stage(
    "more-demos",
    more_demos,
    needs=("policy",),
    builds_on=("more-demos",),
    makes=("trajectories/more-demos.parquet",),
    settings=("demos.action_noise", "demos.episodes_per_batch", "collect.num_trajectories"),
    state=(parts_folder("more-demos"),),
    simulates=always,
)

CLONE_DEMOS = Stage(
    "optimize",
    clone_demos,
    needs=("demos", "more-demos"),
    builds_on=("more-demos",),
    makes=("models/policy", "curves/cloning.jsonl"),
    settings=("recipe.kind", "policy", "rollout.chunk_length"),
    state=("checkpoints/cloning",),
    check=POLICY.check,
    suits=suits,
)
