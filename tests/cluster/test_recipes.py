"""Recipes: what each learns from, and that the stages of one run from its command to a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.events.progress import Reporter
from cluster.recipes import clone_demos, pipeline
from cluster.recipes.context import RunContext
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import recipe_of, stage_labels
from cluster.runtimes.serial_runtime import SerialRuntime
from learners.supervised.jobs import FromFiles
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.data.store import load_episodes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

# As little as shows that every stage does its part: some of the episodes of such a policy succeed.
SMALL = ("evaluation.num_starts=8", "gate.num_trajectories=4")


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """A run that has come as far as all recipes are the same."""
    folder = tmp_path_factory.mktemp("recipes") / "run"
    run_pipeline(load_config("smoke", SMALL), folder, serial=True, until="collect")
    return folder


@pytest.mark.parametrize(
    ("recipe", "kind", "world"),
    [
        ("wmpo", "grpo", "imagination"),
        ("grpo-online", "grpo", "environment"),
        ("dpo", "dpo", "imagination"),
        ("bc-real", "filtered_bc", "imagination"),
        ("bc-imagined", "rollout_bc", "imagination"),
        ("bc-expert", "grpo", "imagination"),
    ],
)
def test_a_recipe_chooses_algorithm_and_world(recipe, kind, world):
    config = load_config("demo", [f"recipe.kind={recipe}"])
    assert (config.algorithm.kind, config.rollout.world) == (kind, world)
    recipe_of(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["recipe.kind=dpo", "algorithm.kind=grpo"], "learns from rollouts"),
        (["algorithm.kind=dpo"], "learns from recorded episodes"),
        (["rollout.world=environment"], 'rollout.world = "environment"'),
        (["recipe.kind=grpo-online", "rollout.world=imagination"], 'rollout.world = "imagination"'),
        (["recipe.kind=bc-expert", "policy.cloning.steps=0", "policy.pretrained=there"], "policy.cloning.steps = 0"),
        (["recipe.kind=bc-expert", "evaluation.final_policy=best"], 'final_policy = "best"'),
        (
            ["evaluation.final_policy=best", "evaluation.every_updates=3"],
            "every_updates=3 is more than grpo.num_updates=2",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(settings, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run_pipeline(load_config("smoke", settings), tmp_path / "run", serial=True, until="demos")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["grpo-online", "dpo", "bc-real"])
def test_a_recipe_runs_to_its_result_from_what_another_has_collected(recipe, collected, tmp_path):
    shutil.copytree(collected, tmp_path / "run")
    section = {"grpo-online": "grpo", "dpo": "dpo", "bc-real": "filtered_bc"}[recipe]
    few = [] if section == "grpo" else [f"{section}.episodes_per_update=16", f"{section}.minibatch_trajectories=8"]
    config = load_config("smoke", [f"recipe.kind={recipe}", *SMALL, f"{section}.num_updates=2", *few])
    summary = run_pipeline(config, tmp_path / "run", serial=True, resume=True)
    assert tuple(summary["stages"]) == stage_labels(config) and summary["result"]["final_success"]["num"] == 8
    metrics = JsonlTracker.read(tmp_path / "run")
    assert [line["update"] for line in metrics if "policy/loss" in line] == [1, 2]
    names = {name.partition("/")[0] for line in metrics for name in line}
    assert "imagined" not in names and ("rollout" in names) == (recipe == "grpo-online")
    assert not (tmp_path / "run" / "models" / "world-model").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["kind"] == recipe


def test_a_second_round_of_an_offline_recipe_learns_from_the_episodes_of_both(collected, tmp_path):
    """That of the first round is made of its own episodes alone, so it is the same with one round and with two."""
    few = ["recipe.kind=bc-real", "filtered_bc.num_updates=1", "filtered_bc.episodes_per_update=16"]
    config = load_config("smoke", [*few, "filtered_bc.minibatch_trajectories=8", *SMALL, "recipe.rounds=2"])
    shutil.copytree(collected, tmp_path / "run")
    asked: list[int] = []

    class Counting(SerialRuntime):
        def call(self, actor, method, *args, num_returns=1):
            if method == "resume":
                asked.append(len(args))
            return super().call(actor, method, *args, num_returns=num_returns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "start_runtime", lambda *about: Counting())
        summary = run_pipeline(config, tmp_path / "run", serial=True, resume=True)
    assert asked == [1, 2] and "evaluate-2" in summary["stages"]


def test_expert_rounds_clone_from_as_many_more_demonstrations_as_others_collect(tmp_path):
    small = ("policy.cloning.steps=6", "policy.cloning.batch_size=8", "demos.num_trajectories=6")
    config = load_config(
        "smoke", ["recipe.kind=bc-expert", "recipe.rounds=2", "collect.num_trajectories=5", *small, *SMALL]
    )
    summary = run_pipeline(config, tmp_path / "run", serial=True)
    assert tuple(summary["stages"]) == stage_labels(config)
    assert stage_labels(config)[-3:] == ("more-demos-2", "optimize-2", "evaluate-2")
    more = [load_episodes(tmp_path / "run" / name / "trajectories" / "more-demos.parquet") for name in ("", "rounds/2")]
    assert [len(episodes) for episodes in more] == [5, 5] and all(episodes.success.mean() > 0.8 for episodes in more)
    assert set(more[0].seeds.tolist()).isdisjoint(more[1].seeds.tolist())
    context = RunContext(config, RunFolder(tmp_path / "run"), Reporter(), SerialRuntime, False, round=2)
    with pytest.MonkeyPatch.context() as patch:
        jobs: list[int] = []

        def note(_context: RunContext, describe) -> dict:
            jobs.extend(len(training.job.demos) for training in describe(FromFiles()))
            return {"cloning": {}}

        patch.setattr(clone_demos, "run_trainings", note)
        clone_demos.clone_demos(context)
    assert jobs == [6 + 5 + 5]
    assert "Expert BC policy" in (tmp_path / "run" / "report" / "index.html").read_text()
