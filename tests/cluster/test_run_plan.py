"""What a run that goes on with other settings keeps, goes on with and redoes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.pretraining.pretrain import PRETRAIN
from cluster.recipes.recipe_table import RECIPES, recipe_of, stage_labels, steps_of
from cluster.recipes.run_plan import Action, Planned, check_resume, plan_run, source_of
from cluster.recipes.stage import EVERYWHERE, FREE, is_among
from wmpo_ray.config.dumping import config_to_json, flatten
from wmpo_ray.config.loading import known_settings, validate
from wmpo_ray.config.run import IMPLIED_BY_RECIPE, Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs.checkpoint import save_checkpoint
from wmpo_ray.runs.folder import RunFolder

BEGINNING: dict[str, Any] = {"name": "test", "seed": 3}
LAST = ("optimize", "evaluate")
AFTER_COLLECT = ("collect", "world-model", "reward-model", "gate", *LAST)


def config_of(*changes: Mapping[str, Any]) -> Config:
    settings = dict(BEGINNING)
    for change in changes:
        for section, values in change.items():
            settings[section] = {**settings.get(section, {}), **values} if isinstance(values, Mapping) else values
    implied = IMPLIED_BY_RECIPE.get(settings.get("recipe", {}).get("kind"), {})
    return validate({**implied, **settings})


def plan_of(path: Path, config: Config) -> list[Planned]:
    with RunFolder.open(path, config) as folder:
        return plan_run(folder, config, steps_of(config))


def make_done(path: Path, config: Config, *labels: str) -> None:
    """Record steps, by default all, as a run with this config does."""
    with RunFolder.open(path, config) as folder:
        plan = plan_run(folder, config, steps_of(config))
        folder.accept(config, [each.label for each in plan])
        for each in plan:
            if not labels or each.label in labels:
                folder.finish(each.label, 1.0, {}, each.source._asdict())


def actions(path: Path, config: Config) -> dict[str, Action]:
    """Of every step that is not kept."""
    return {each.label: each.action for each in plan_of(path, config) if each.action is not Action.KEEP}


# -- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("rounds", [1, 3])
def test_every_step_comes_after_what_it_needs(kind, rounds):
    seen: set[str] = set()
    pretrain = {"steps": 1, "num_trajectories": 200} if kind == "pretrain" else {}
    for step in steps_of(config_of({"recipe": {"kind": kind, "rounds": rounds}, "pretrain": pretrain})):
        assert set(step.needs) <= seen
        assert step.label not in seen
        seen.add(step.label)


def test_two_files_of_a_round_are_never_made_by_two_stages():
    for recipe in RECIPES.values():
        made = [name for stage in (*recipe.once, *recipe.repeated) for name in stage.makes]
        assert len(made) == len(set(made))


def test_a_later_round_collects_and_improves_the_policy_of_the_round_before():
    steps = {step.label: step for step in steps_of(config_of({"recipe": {"rounds": 3}}))}
    assert steps["collect"].needs == ("policy",) and steps["collect-3"].needs == ("optimize-2",)
    assert steps["world-model-3"].needs == ("demos", "collect-3", "world-model-2")
    assert set(steps["optimize-2"].needs) == {"optimize", "collect-2", "world-model-2", "reward-model-2"}
    assert steps["evaluate"].needs == ("policy", "optimize")
    assert steps["evaluate-3"].needs == ("optimize-2", "optimize-3", "evaluate-2")
    assert stage_labels(config_of()) == ("demos", "policy", *AFTER_COLLECT)


def test_an_unknown_recipe_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match='recipe.kind = "wmppo": known are wmpo, .*bc-real'):
        recipe_of(config_of({"recipe": {"kind": "wmppo"}}))


@pytest.mark.parametrize("wanted", [{"only": "gates"}, {"until": "optimize-2"}], ids=str)
def test_an_unknown_stage_is_named_with_those_of_the_recipe_and_nothing_is_made(tmp_path, wanted):
    (name,) = wanted.values()
    with pytest.raises(UserError, match=f"unknown stage '{name}'; the stages are demos, policy, .*evaluate"):
        run_pipeline(config_of(), tmp_path / "run", serial=True, **wanted)
    assert not (tmp_path / "run").exists()


# -- settings ------------------------------------------------------------------------------------------------------


def test_every_setting_is_free_or_belongs_to_a_stage():
    """A new setting must be entered somewhere: one that nobody names would be changed without any effect."""
    named = {name for recipe in RECIPES.values() for stage in (PRETRAIN, *recipe.once, *recipe.repeated)
             for name in (*stage.settings, *(name for key, _, keys in stage.settings_if for name in (key, *keys)))}  # fmt: skip
    keys = {*flatten(Config()), *known_settings()}  # of every kind and every algorithm
    assert {key for key in keys if not is_among(key, (*EVERYWHERE, *FREE, *named))} == set()
    for name in (*EVERYWHERE, *FREE, *named):
        assert any(is_among(key, (name,)) for key in keys), f"{name} is no setting"


FREE_CHANGES = [
    {"placement": {"layout": "collocated", "reward": {"cpus": 1.0}}},
    {"faults": {"max_start_failures": 9, "max_quarantined": 99}},
    {"checkpoint": {"keep": 5, "every_training_steps": 7}},
    {"cluster": {"imagination_actors": [1, 4], "reward_actors": 3, "address": "10.0.0.1:6379"}},
    {"weights": {"transport": "gloo", "timeout_s": 5.0, "payload": "delta"}},
    {"rollout": {"max_attempts": 4096}},
    {"grpo": {"max_skipped_steps": 50}},
    {"evaluation": {"every_updates": 1}},
]


@pytest.mark.parametrize("change", FREE_CHANGES, ids=str)
def test_settings_that_change_no_result_redo_nothing_whether_the_run_is_done_or_stopped(tmp_path, change):
    make_done(tmp_path / "done", config_of())
    assert actions(tmp_path / "done", config_of(change)) == {}
    make_done(tmp_path / "stopped", config_of(), "demos", "policy")
    with RunFolder.open(tmp_path / "stopped", config_of()) as folder:
        folder.begin("collect", plan_run(folder, config_of(), steps_of(config_of()))[2].source._asdict())
    assert actions(tmp_path / "stopped", config_of(change))["collect"] is Action.RESUME


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"evaluation": {"num_starts": 32}}, ("evaluate",)),
        ({"gate": {"min_f1": 0.5}}, ("gate",)),
        ({"grpo": {"learning_rate": 0.5}}, LAST),
        ({"rollout": {"groups_per_update": 30}}, LAST),
        ({"weights": {"dtype": "bfloat16"}}, LAST),
        ({"reward": {"steps": 10}}, ("reward-model", "gate", *LAST)),
        ({"world_model": {"alignment": {"steps": 7}}}, ("world-model", "reward-model", "gate", *LAST)),
        ({"collect": {"num_trajectories": 16}}, AFTER_COLLECT),
        ({"policy": {"cloning": {"steps": 20}}}, ("policy", *AFTER_COLLECT)),
        ({"cluster": {"threads_per_process": 4}}, ("demos", "policy", *AFTER_COLLECT)),
    ],
    ids=str,
)
def test_a_changed_setting_redoes_the_stages_that_depend_on_it_and_no_other(tmp_path, change, redone):
    make_done(tmp_path, config_of())
    assert actions(tmp_path, config_of(change)) == dict.fromkeys(redone, Action.REDO)
    first = next(each for each in plan_of(tmp_path, config_of(change)) if each.action is Action.REDO)
    ((section, _),) = change.items()
    assert first.reason.startswith(f"{section}.") and " -> " in first.reason
    assert actions(tmp_path, config_of()) == {}  # nothing was written: the settings from before are still good


def test_more_updates_go_on_from_the_last_and_fewer_begin_anew(tmp_path):
    make_done(tmp_path, config_of({"grpo": {"num_updates": 2}}))
    more, fewer = config_of({"grpo": {"num_updates": 4}}), config_of({"grpo": {"num_updates": 1}})
    assert actions(tmp_path, more) == {"optimize": Action.EXTEND, "evaluate": Action.REDO}
    assert actions(tmp_path, fewer) == {"optimize": Action.REDO, "evaluate": Action.REDO}
    (reason,) = (each.reason for each in plan_of(tmp_path, more) if each.label == "optimize")
    assert reason == "grpo.num_updates: 2 -> 4"
    with RunFolder.open(tmp_path, more) as folder:  # the extension is begun, and stops somewhere
        folder.begin(
            "optimize",
            next(e for e in plan_run(folder, more, steps_of(more)) if e.label == "optimize").source._asdict(),
        )
    assert actions(tmp_path, more)["optimize"] is Action.RESUME
    # It may stand behind the third update already.
    assert actions(tmp_path, config_of({"grpo": {"num_updates": 3}}))["optimize"] is Action.REDO
    assert actions(tmp_path, config_of({"grpo": {"num_updates": 2}})) == {}


def test_another_round_is_added_and_the_first_one_kept(tmp_path):
    make_done(tmp_path, config_of())
    two = config_of({"recipe": {"rounds": 2}})
    assert actions(tmp_path, two) == dict.fromkeys((f"{name}-2" for name in AFTER_COLLECT), Action.BEGIN)
    make_done(tmp_path, two)
    with pytest.raises(UserError, match="recipe.rounds=1: .* has begun round 2.*recipe.rounds to 2 or more"):
        plan_of(tmp_path, config_of())


def test_another_recipe_keeps_what_it_shares(tmp_path):
    make_done(tmp_path, config_of())
    redone = actions(tmp_path, config_of({"recipe": {"kind": "grpo-online"}}))
    assert redone == {"optimize": Action.REDO, "evaluate": Action.REDO}


@pytest.mark.parametrize("change", [{"seed": 4}, {"name": "other"}], ids=str)
def test_the_folder_of_another_run_is_refused(tmp_path, change):
    make_done(tmp_path, config_of(), "demos")
    with pytest.raises(UserError, match=f"holds another run: {next(iter(change))}: .* -> .*--out"):
        plan_of(tmp_path, config_of(change))


# -- what was begun ------------------------------------------------------------------------------------------------


def test_a_stage_that_was_begun_with_other_settings_is_not_gone_on_with(tmp_path):
    make_done(tmp_path, config_of(), "demos")
    other = config_of({"policy": {"cloning": {"steps": 20}}})
    with RunFolder.open(tmp_path, config_of()) as folder:
        (source,) = (e.source for e in plan_run(folder, config_of(), steps_of(config_of())) if e.label == "policy")
        folder.begin("policy", source._asdict())
        save_checkpoint(folder.checkpoints / "policy", 100, {}, {}, keep=1)
    assert actions(tmp_path, config_of())["policy"] is Action.RESUME
    assert actions(tmp_path, other)["policy"] is Action.REDO
    with RunFolder.open(tmp_path, config_of()) as folder:
        folder.begin("policy", source._asdict(), is_clear=False)  # killed before the old state was out of the way
    assert actions(tmp_path, config_of())["policy"] is Action.REDO


def test_going_on_and_redoing_have_to_be_asked_for(tmp_path):
    make_done(tmp_path, config_of())
    other = config_of({"reward": {"steps": 10}})
    with RunFolder.open(tmp_path, other) as folder:
        plan = plan_run(folder, other, steps_of(other))
        message = r"reward-model \(reward.steps: 800 -> 10\); gate \(follows reward-model\).*Add --resume"
        for resume in (False, True):  # a job resumes by itself, but does not redo
            with pytest.raises(UserError, match=message):
                check_resume(folder, plan, resume, redo=False)
        check_resume(folder, plan, resume=True, redo=True)
        folder.begin("reward-model", plan[4].source._asdict())
        with pytest.raises(UserError, match="reward-model stopped in the middle"):
            check_resume(folder, plan_run(folder, other, steps_of(other))[:5], resume=False, redo=False)


@pytest.mark.parametrize("wanted", [{"only": "gate"}, {"until": "gate"}], ids=str)
def test_settings_that_made_a_later_result_are_not_replaced_by_running_an_earlier_stage(tmp_path, wanted):
    """The folder would claim a learning rate that its policy was not trained with."""
    config, other = config_of({"grpo": {"learning_rate": 2e-4}}), config_of({"grpo": {"learning_rate": 1e-4}})
    make_done(tmp_path / "run", config)
    with pytest.raises(UserError, match="optimize .grpo.learning_rate: 0.0002 -> 0.0001.; evaluate .*add --resume"):
        run_pipeline(other, tmp_path / "run", serial=True, **wanted)
    with RunFolder.open(tmp_path / "run", config) as folder:
        assert folder.config == config


def test_a_run_of_an_earlier_version_is_gone_on_with(tmp_path):
    """Its records do not say what they were made from; its config does."""
    config = config_of({"grpo": {"num_updates": 2}})
    with RunFolder.open(tmp_path, config) as folder:
        for label in stage_labels(config)[:-2]:
            folder.finish(label, 1.0, {})
        save_checkpoint(folder.checkpoints, 1, {}, {}, keep=1)
    assert actions(tmp_path, config) == {"optimize": Action.RESUME, "evaluate": Action.BEGIN}
    (tmp_path / "config.json").write_text(config_to_json(config_of({"reward": {"steps": 10}})))
    assert actions(tmp_path, config) == {"optimize": Action.RESUME, "evaluate": Action.BEGIN}, "it was noted"


@pytest.mark.parametrize("noted", [{}, {"made_from": 3}, {"made_from": {"key": "a", "sneaky": 1}}])
def test_an_unreadable_note_is_damage(noted):
    with pytest.raises(UserError, match="summary.json is damaged"):
        source_of(noted)
