"""What goes in by a preset, a file or --set, and when two configs are the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.config_errors import error_of, write_config
from wmpo_ray.config.dumping import config_differences, config_hash, config_to_json, config_to_toml
from wmpo_ray.config.loading import list_presets, load_config, read_config_json
from wmpo_ray.config.run import Config

MY_DEMO = """
preset = "demo"
name = "mine"
seed = 7

[environment]
horizon = 40
disruption = "background"

[demos]
num_trajectories = 80

[collect]
num_trajectories = 256

[world_model.alignment]
steps = 600

[reward]
steps = 900

[rollout]
group_size = 16
groups_per_update = 32
temperature = 1.2

[grpo]
num_updates = 20
learning_rate = 5e-5

[filter]
max_staleness = 1

[cluster]
imagination_actors = 4
"""


# -- presets and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_loads_under_its_name_and_survives_both_formats(name, tmp_path):
    config = load_config(name)
    assert config.name == name
    (tmp_path / "config.json").write_text(config_to_json(config))
    assert read_config_json(tmp_path / "config.json") == config
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config


def test_the_presets_are_what_their_names_say():
    assert load_config("perfect-world").world_model.kind == "simulator"
    differing = {line.split(":")[0] for line in config_differences(load_config("demo"), load_config("perfect-world"))}
    assert differing == {"name", "world_model.kind"}, "the control differs in one thing only"


def test_a_users_file_for_the_demo_needs_at_most_20_keys(tmp_path):
    config = load_config(write_config(tmp_path, MY_DEMO))
    changed = config_differences(load_config("demo"), config)
    num_keys = sum("=" in line for line in MY_DEMO.splitlines())
    assert len(changed) == num_keys - 1 <= 19, "every key but `preset` changes a setting"
    assert config.reward.verify == load_config("demo").reward.verify, "what the file does not name is the preset's"


def test_a_file_without_a_preset_starts_from_the_defaults(tmp_path):
    assert load_config(write_config(tmp_path, "seed = 3")) == Config(seed=3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed = ", "is not TOML"),
        ('preset = "dmeo"', "known presets are aloha, coffee, demo, "),
        ("preset = 3", "known presets are"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, part):
    path = write_config(tmp_path, text)
    assert path in (message := error_of(path)) and part in message


def test_a_source_that_is_nothing_lists_the_presets(tmp_path):
    for source in ("dmeo", str(tmp_path)):
        assert f"'{source}' is neither a preset (aloha, coffee, demo, " in error_of(source)


# -- variants ----------------------------------------------------------------------------------------------------

TASKS = ("aloha", "coffee", "square", "stack_three", "three_piece_assembly")


@pytest.mark.parametrize("task", TASKS)
def test_a_variant_changes_what_paper_and_reference_disagree_about(task):
    paper, reference = (load_config(task, [f"variant={name}"]) for name in ("paper", "reference"))
    assert (paper.grpo.ratio, paper.grpo.advantage_std) == ("chunk", "population")
    assert (reference.grpo.ratio, reference.grpo.advantage_std) == ("token", "unbiased")
    assert (paper.world_model.denoiser.conditioning_noise, paper.world_model.alignment.ema_decay) == (0.05, 0.9999)
    assert (reference.world_model.denoiser.conditioning_noise, reference.world_model.alignment.ema_decay) == (
        0.015,
        0.99,
    )
    assert (paper.world_model.alignment.max_grad_norm, reference.world_model.alignment.max_grad_norm) == (0.1, 1.0)
    assert (paper.reward.min_steps, reference.reward.min_steps) == (0, 100)
    assert paper.reward.threshold == 0.0, "chosen on validation"
    for config in (paper, reference):
        assert (config.grpo.clip_low, config.grpo.clip_high, config.grpo.learning_rate) == (0.20, 0.28, 5e-6)
        assert config.rollout == load_config(task).rollout


def test_presets_of_a_task_differ_only_in_the_task():
    of_a_task = {
        "name", "environment.kind", "environment.task", "environment.horizon", "policy.pretrained",
        "policy.openvla.unnorm_key", "world_model.pretrained", "reward.pretrained", "reward.threshold",
    }  # fmt: skip
    for task in TASKS:
        changed = {line.split(":")[0] for line in config_differences(load_config("coffee"), load_config(task))}
        assert changed <= of_a_task
    released = {task: load_config(task).reward.threshold for task in TASKS}
    assert released == {
        "aloha": 0.0, "coffee": 0.82, "square": 0.96, "stack_three": 0.66, "three_piece_assembly": 0.62
    }  # fmt: skip


def test_a_file_wins_over_its_variant_and_an_override_over_both(tmp_path):
    text = 'preset = "square"\nvariant = "reference"\n[grpo]\nratio = "chunk"\nnum_updates = 7\n'
    config = load_config(write_config(tmp_path, text), ["grpo.num_updates=8"])
    assert (config.grpo.ratio, config.grpo.advantage_std, config.grpo.num_updates) == ("chunk", "unbiased", 8)
    assert config.reward.threshold == 0.96
    paper = load_config(write_config(tmp_path, text), ["variant=paper"])
    assert (paper.grpo.ratio, paper.grpo.advantage_std, paper.reward.threshold) == ("chunk", "population", 0.0)


@pytest.mark.parametrize(
    ("preset", "variant", "part"),
    [
        ("coffee", "papr", "known are paper, reference"),
        ("demo", "paper", "the preset has none"),
        ("coffee", "3", "known"),
    ],
)
def test_a_variant_that_is_none_is_named(preset, variant, part):
    assert part in (message := error_of(preset, f"variant={variant}")) and message.startswith("variant = ")


def test_the_sampler_of_a_pretrained_model_counts_only_where_it_was_chosen(tmp_path):
    """Run folders of earlier versions name a sampler that was never used."""
    data = json.loads(config_to_json(load_config("demo")))
    data["world_model"]["sampler"] = {"num_steps": 30, "shift": 1.0}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    assert read_config_json(path) == load_config("demo")
    data["world_model"]["pretrained"] = ""
    path.write_text(json.dumps(data))
    assert read_config_json(path).world_model.sampler.num_steps == 30
    chosen = load_config("demo", ["world_model.sampler.num_steps=30"])
    path.write_text(config_to_json(chosen))
    assert read_config_json(path) == chosen


# -- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_win_in_their_order_and_leave_the_rest_alone():
    config = load_config(
        "demo", ["grpo.learning_rate=1e-6", "name=my run", "seed=1", "seed=2", "grpo.betas=[0.8, 0.9]"]
    )
    assert (config.grpo.learning_rate, config.name, config.seed, config.grpo.betas) == (1e-6, "my run", 2, (0.8, 0.9))
    assert {line.split(":")[0] for line in config_differences(load_config("demo"), config)} == {
        "grpo.learning_rate", "name", "seed", "grpo.betas"
    }  # fmt: skip


def test_an_empty_override_is_the_empty_string():
    assert load_config("demo", ["world_model.pretrained="]).world_model.pretrained == ""


@pytest.mark.parametrize("override", ["seed", "=3", "grpo..learning_rate=1", ".seed=1"])
def test_an_override_that_names_no_key_shows_how_to_write_one(override):
    assert error_of("demo", override).startswith(f"--set {override}: expected key=value")


# -- identity ----------------------------------------------------------------------------------------------------


@settings(deadline=None)  # two cores that others use
@given(st.integers(0, 2**31 - 1), st.floats(1e-9, 1.0), st.sampled_from(["chunk", "token"]))
def test_hash_and_differences_agree_on_what_is_the_same(seed, learning_rate, ratio):
    base = Config()
    other = Config.model_validate({"seed": seed, "grpo": {"learning_rate": learning_rate, "ratio": ratio}})
    assert (config_hash(base) == config_hash(other)) == (config_differences(base, other) == []) == (base == other)
    assert config_hash(other) == config_hash(Config.model_validate_json(config_to_json(other)))


def test_a_difference_gives_key_and_both_values():
    changed = load_config("demo", ["grpo.learning_rate=1e-5"])
    assert config_differences(load_config("demo"), changed) == ["grpo.learning_rate: 0.0001 -> 1e-05"]


def test_a_setting_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValueError, match="frozen"):
        Config().grpo.learning_rate = 1.0  # type: ignore[misc]
