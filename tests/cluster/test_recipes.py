"""Recipes: what each learns from, and that the stages of one run from its command to a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import recipe_of, stage_labels
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError
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
