"""A branch takes a training over, ends with the bits of a run that follows its schedule, and says where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.recipes.optimize import stretches_ahead
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.reuse.branch import branch_run, updates_taken_over
from cluster.recipes.reuse.fork import SETTINGS
from cluster.recipes.run_plan import Action, plan_run
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.loading import load_config, overridden
from wmpo_ray.config.stretches import changed_on_the_way, first_update, stretches
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs.folder import RunFolder

QUICK = "evaluation.every_updates=0"  # which no result depends on
CHANGES = ["grpo.learning_rate=0.001", "grpo.weight_decay=0.1", "rollout.group_size=6"]
SCHEDULE = (("grpo.num_updates=1", *["grpo.learning_rate=0.0001", "grpo.weight_decay=0.0", "rollout.group_size=4"]),)


def train(folder: Path, config=None) -> str:
    """The digest of the weights that `optimize` ends with."""
    config = config or load_config(str(folder / SETTINGS))
    return run_pipeline(config, folder, serial=True, resume=True, until="optimize")["stages"]["optimize"]["metrics"][
        "weights"
    ]


@pytest.fixture(scope="module")
def first(gated_run, tmp_path_factory) -> Path:
    """A run of one update."""
    folder = gated_run.copy(tmp_path_factory.mktemp("branches") / "first", "grpo.num_updates=1", QUICK)
    train(folder, RunFolder(folder).config)
    return folder


def test_a_branch_ends_with_the_bits_of_its_schedule_from_the_start(first, gated_run, tmp_path):
    branch, straight = tmp_path / "branch", tmp_path / "straight"
    settings = [part for change in ["grpo.num_updates=2", *CHANGES] for part in ("--set", change)]
    done = CliRunner().invoke(app, ["fork", str(first), "--out", str(branch), "--branch", *settings])
    assert done.exit_code == 0 and "1 updates taken over" in done.output and updates_taken_over(branch) == 1
    config = load_config(str(branch / SETTINGS))
    assert set(config.schedule.earlier[0]) == set(SCHEDULE[0]) and config == RunFolder(branch).config
    (planned,) = [each for each in plan_run(RunFolder(branch), config, steps_of(config)) if each.label == "optimize"]
    assert planned.action is Action.RESUME, "it goes on, where other settings would begin again"
    weights = train(branch)
    done = RunFolder(branch)
    assert done.metrics("optimize")["resumed_from"] == 1 and first_update(config) == 1
    assert done.record("optimize")["made_from"]["settings"]["schedule.earlier"]
    gated_run.copy(straight, QUICK)
    assert train(straight, config) == weights, "both stretches, one after the other"
    assert RunFolder(straight).metrics("optimize")["resumed_from"] == 0
    changed = RunFolder(straight).summary["stages"]["optimize"]["made_from"]
    assert changed == done.record("optimize")["made_from"]
    without = overridden(config, ["schedule.earlier=[]"])
    (planned,) = [each for each in plan_run(done, without, steps_of(config)) if each.label == "optimize"]
    assert planned.action is Action.REDO, "never taken for a run that had these settings from the start"


def test_a_branch_that_changes_nothing_is_the_run_gone_further(first, whole_run, tmp_path):
    branch = tmp_path / "branch"
    branch_run(first, branch, ["grpo.num_updates=2"])
    assert load_config(str(branch / SETTINGS)) == load_config("smoke", [QUICK])
    assert train(branch) == RunFolder(whole_run.folder).metrics("optimize")["weights"]


def test_another_run_gives_way_to_a_branch(first, gated_run, tmp_path):
    folder = gated_run.copy(tmp_path / "poor", QUICK)
    (folder / "rest").write_text("of it")
    branch_run(first, folder, ["grpo.num_updates=2", CHANGES[0]], replace=True)
    assert updates_taken_over(folder) == 1 and not (folder / "rest").exists()
    assert RunFolder(folder).begun("optimize") and (folder / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["grpo.num_updates=2", "rollout.num_chunks=3"], "rollout.num_chunks cannot change between two updates"),
        (["grpo.num_updates=2", "filter.max_staleness=1"], "filter.max_staleness cannot change"),
        (["grpo.num_updates=2", "gate.num_trajectories=8"], r"collect would be made from other .*of optimize alone"),
        ([CHANGES[0]], r"end with the updates \[1\] and the training with 1; .*set grpo.num_updates"),
    ],
)
def test_what_cannot_change_on_the_way_leaves_nothing(first, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        branch_run(first, tmp_path / "branch", settings)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_is_not_done_has_no_branch(gated_run, tmp_path):
    with pytest.raises(UserError, match="optimize is not done with the run's settings"):
        branch_run(gated_run.folder, tmp_path / "branch", CHANGES)


def schedule(*entries: list[str], updates: int = 9):
    return load_config("smoke", [f"schedule.earlier={json.dumps(entries)}", f"grpo.num_updates={updates}"])


def test_a_schedule_is_a_list_of_configurations(tmp_path):
    config = schedule(["grpo.num_updates=2", 'grpo.ratio="token"'], ["grpo.num_updates=5", "grpo.clip_high=0.3"])
    assert [(each.grpo.num_updates, each.grpo.ratio, each.grpo.clip_high) for each in stretches(config)] == [
        (2, "token", 0.28),
        (5, "chunk", 0.3),
        (9, "chunk", 0.28),
    ]
    assert [len(each.schedule.earlier) for each in stretches(config)] == [0, 1, 2] and first_update(config) == 5
    (tmp_path / "written.toml").write_text(config_to_toml(config))
    assert load_config(str(tmp_path / "written.toml")) == config
    assert stretches_ahead(config, tmp_path) == stretches(config)
    with pytest.raises(ConfigError, match=r"\[2, 2\] and the training with 9"):
        stretches(schedule(["grpo.num_updates=2"], ["grpo.num_updates=2"]))
    with pytest.raises(ConfigError, match=r"schedule.earlier: seed cannot change between two updates"):
        stretches(schedule(["grpo.num_updates=2", "seed=3"]))
    with pytest.raises(ConfigError, match="learns from recorded episodes"):
        stretches(load_config("smoke", ["recipe.kind=dpo", 'schedule.earlier=[["dpo.num_updates=1"]]']))


def test_what_changes_nothing_is_no_part_of_a_schedule():
    new = load_config("smoke", ["grpo.num_updates=20", "grpo.learning_rate=0.01"])
    old = schedule(["grpo.num_updates=2", "grpo.learning_rate=0.5"], ["grpo.num_updates=5", "grpo.learning_rate=0.01"])
    earlier = changed_on_the_way(old, new).schedule.earlier
    default = f"grpo.learning_rate={load_config('smoke').grpo.learning_rate}"
    assert [list(each) for each in earlier] == [
        ["grpo.num_updates=2", "grpo.learning_rate=0.5"],
        ["grpo.num_updates=5", "grpo.learning_rate=0.01"],
        ["grpo.num_updates=9", default],
    ]
    back = load_config("smoke", ["grpo.num_updates=20"])
    assert [len(each) for each in changed_on_the_way(old, back).schedule.earlier] == [2, 2], "the last is as before"
    assert changed_on_the_way(back, overridden(back, ["grpo.num_updates=30"])).schedule.earlier == ()
