"""What goes in by a preset, a file or --set is checked as a whole, and a mistake is named with its dotted key."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.config_errors import error_of
from wmpo_ray.config.dumping import config_differences, config_hash, config_to_json, config_to_toml, flatten
from wmpo_ray.config.loading import list_presets, load_config, nearest_key, read_config_json, validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError

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
num_updates = 30
learning_rate = 5e-5

[filter]
max_staleness = 1

[cluster]
imagination_actors = 4
"""


@pytest.fixture
def write(tmp_path):
    def write_config(text: str) -> str:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return str(path)

    return write_config


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
    assert load_config("demo").reward.verify.enabled
    differing = {line.split(":")[0] for line in config_differences(load_config("demo"), load_config("perfect-world"))}
    assert differing == {"name", "world_model.kind", "reward.verify.enabled"}, "the control differs in one thing only"


def test_a_users_file_for_the_demo_needs_at_most_20_keys(write):
    config = load_config(write(MY_DEMO))
    changed = config_differences(load_config("demo"), config)
    num_keys = sum("=" in line for line in MY_DEMO.splitlines())
    assert len(changed) == num_keys - 1 <= 19, "every key but `preset` changes a setting"
    assert config.reward.verify == load_config("demo").reward.verify, "what the file does not name is the preset's"


def test_a_file_without_a_preset_starts_from_the_defaults(write):
    assert load_config(write("seed = 3")) == Config(seed=3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed = ", "is not TOML"),
        ('preset = "dmeo"', "known presets are aloha, coffee, demo, "),
        ("preset = 3", "known presets are"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(write, text, part):
    path = write(text)
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


def test_a_file_wins_over_its_variant_and_an_override_over_both(write):
    text = 'preset = "square"\nvariant = "reference"\n[grpo]\nratio = "chunk"\nnum_updates = 7\n'
    config = load_config(write(text), ["grpo.num_updates=8"])
    assert (config.grpo.ratio, config.grpo.advantage_std, config.grpo.num_updates) == ("chunk", "unbiased", 8)
    assert config.reward.threshold == 0.96
    paper = load_config(write(text), ["variant=paper"])
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


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("grpo.learning_rat=1e-4", "grpo.learning_rate"),
        ("learning_rate=1e-4", "grpo.learning_rate"),
        ("gropo={learning_rate=1e-4}", "grpo"),
        ("environment.horizn=32", "environment.horizon"),
        ("rollout.chunk_size=4", "rollout.chunk_length"),
        ("world_model.netwrok={depth=2}", "world_model.network"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(override, nearest):
    key = override.split("=")[0]
    assert error_of("demo", override) == f"unknown key {key}; did you mean {nearest}?"


def test_a_key_is_found_again_when_its_last_letter_is_lost():
    for key in [*flatten(Config())][::8]:
        assert nearest_key(key[:-1]) == key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('seed="5"', 'seed = "5": it must be a valid integer'),
        ("seed=true", "seed = true: it must be a valid integer"),
        ("rollout.group_size=2.5", "rollout.group_size = 2.5: it must be a valid integer"),
        ("grpo=3", "grpo = 3: it must be a table of keys, such as grpo.num_updates"),
        ("grpo.learning_rate=0", "grpo.learning_rate = 0: it must be greater than 0"),
        ("grpo.learning_rate=nan", "grpo.learning_rate = NaN: it must be a finite number"),
        ("reward.verify.enabled=yes", 'reward.verify.enabled = "yes": it must be a valid boolean'),
        ("grpo.ratio=word", "grpo.ratio = \"word\": it must be 'chunk' or 'token'"),
        ("grpo.betas=[0.9, 1.0]", "grpo.betas.1 = 1.0: it must be less than 1"),
        ("world_model.network.patch_size=[1, 2]", "world_model.network.patch_size = [1, 2]: an item is missing"),
    ],
)
def test_an_ill_typed_value_gives_key_value_and_what_is_expected(override, message):
    assert error_of("demo", override) == message


@pytest.mark.parametrize("value", ["true", "[3]", "1000000000", "[1, 10001]", '"many"'])
def test_a_number_of_actors_that_has_neither_form_is_one_line(value):
    wanted = "give a whole number, or [min, max], of at most 10,000; change cluster.reward_actors"
    assert error_of("demo", f"cluster.reward_actors={value}") == f"cluster.reward_actors = {value}: {wanted}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.group_size=1"], "group_size=1: GRPO needs at least 2; set rollout.group_size"),
        (["environment.horizon=30"], "environment.horizon=30 is not a multiple of rollout.chunk_length=4; set "),
        (["reward.clip_length=64"], "reward.clip_length=64 is longer than a trajectory of 33 frames"),
        (["reward.clip_length=5"], "reward.clip_length=5 is not a multiple of reward.network.tubelet_size=2"),
        (["filter.min_mean=0.9", "filter.max_mean=0.1"], "filter.min_mean=0.9 is above filter.max_mean=0.1"),
        (["grpo.minibatch_trajectories=513"], "grpo.minibatch_trajectories=513 is more than the 512 trajectories"),
        (
            ["grpo.trained_parameters=lora_("],
            'grpo.trained_parameters = "lora_(" is not a regular expression: missing )',
        ),
        (["rollout.max_attempts=8"], "max_attempts=8 is below groups_per_update=64; set rollout.max_attempts"),
        (["world_model.kind=simulator", "reward.verify.enabled=true"], "reward.verify.enabled needs world_model.kind"),
        (["policy.kind=openvla_oft"], 'policy.pretrained = "": policy.kind = "openvla_oft" has no fresh network'),
        (["reward.kind=videomae_published"], 'reward.pretrained = "": reward.kind = "videomae_published" has no fresh'),
        (["policy.cloning.steps=0"], "policy.cloning.steps=0 takes a policy as it is, and there is none"),
        (["reward.steps=0"], "reward.steps=0 takes a reward model as it is, and there is none"),
        (["world_model.pretrained=", "world_model.alignment.steps=0"], "world_model.alignment.steps=0 takes a world "),
        (
            ["policy.kind=openvla_oft", "policy.openvla={lora_dropout=0.1, gradient_checkpointing=true}"],
            "policy.openvla.lora_dropout=0.1: with gradient_checkpointing",
        ),
        (["cluster.training_workers=[2, 1]"], "cluster.training_workers = [2, 1]: give a number of workers"),
        (["cluster.training_workers=0"], "cluster.training_workers = 0: give a number of workers"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(write, overrides, message):
    sizes = "horizon = 32\n[rollout]\nchunk_length = 4\ngroup_size = 8\ngroups_per_update = 64\n"
    assert error_of(write(f"[environment]\n{sizes}"), *overrides).startswith(message)


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "a/b", "/etc", "", " a", "a ", "a.", "-rf", "a\\b", "a\nb", "s3:x", "x" * 61]
)
def test_a_name_that_is_no_folder_of_its_own_is_refused(name):
    with pytest.raises(ConfigError, match=r"^name = .*letters, digits.*; change name$"):
        validate({"name": name})


@pytest.mark.parametrize("name", ["a", "demo-2", "my run", "v1.2", "grün", "x" * 60])
def test_a_plain_name_is_kept(name):
    assert validate({"name": name}).name == name


@pytest.mark.parametrize(
    "key",
    [
        "world_model.pretrained",
        "world_model.codec",
        "reward.verify.pretrained",
        "policy.pretrained",
        "reward.pretrained",
    ],
)
def test_an_address_in_place_of_a_path_is_named_with_what_is_allowed(key):
    message = error_of("demo", f"{key}=s3://bucket/x")
    assert message.startswith(f'{key} = "s3://bucket/x": s3:// is no file system') and message.endswith(f"change {key}")
    load_config("demo", [f"{key}=/models/x", f"{key}=../x"])


def test_what_stands_before_the_host_is_not_shown():
    assert "hunter2" not in error_of("demo", "world_model.pretrained=https://me:hunter2@host/x")
    assert "hunter2" not in error_of("demo", "cluster.address=ray://me:hunter2@host:1")


@pytest.mark.parametrize("address", ["", "auto", "127.0.0.1:6379", "head.cluster.local:6379", "[::1]:6379"])
def test_an_address_of_a_cluster(address):
    assert load_config("demo", [f"cluster.address={address}"]).cluster.address == address


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("foo://1", "this is no address of a cluster"),
        ("ray://host:10001", "a Ray client cannot place actors"),
        ("ray://host:10001", "submit the run with `ray job submit`"),
        ("http://host:8265", "a dashboard takes jobs but no drivers"),
        ("host", "this is no host:port"),
        ("host:0", "this is no host:port"),
        ("host:65536", "this is no host:port"),
        ("me@host:1", "this is no host:port"),
        ("host:1 --x", "this is no host:port"),
    ],
)
def test_an_address_that_is_none_says_what_is_allowed(address, part):
    message = error_of("demo", f"cluster.address={address}")
    assert message.startswith("cluster.address = ") and part in message
    assert '"host:port", "auto"' in message and message.endswith("change cluster.address")


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "seed = " + "9" * 10**4, "a." * 20_000 + "a = 1", "#" * 2**21])
def test_a_hostile_file_is_a_line(write, text):
    assert len(error_of(write(text)).splitlines()) == 1


def test_a_hostile_override_is_a_line():
    for override in ("seed=" + "[" * 10**5, "a." * 20_000 + "a=1", "seed=" + "9" * 10**4):
        assert len(error_of("demo", override).splitlines()) == 1


def test_every_mistake_has_its_own_line():
    lines = error_of("demo", "seed=-1", "grpo.learning_rat=1", 'demos.num_trajectories="x"').splitlines()
    named = {line.split(" = ")[0].split(";")[0] for line in lines}
    assert len(lines) == 3 and named == {"seed", "demos.num_trajectories", "unknown key grpo.learning_rat"}


def test_a_damaged_config_of_a_run_folder_is_named(tmp_path):
    path = tmp_path / "config.json"
    for text in ("", "[]", config_to_json(Config())[:-20], '{"sed": 1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="config.json"):
            read_config_json(path)
    with pytest.raises(ConfigError, match="is missing"):
        read_config_json(tmp_path / "absent.json")


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
