"""A config is checked as a whole, and a mistake is named with its dotted key."""

from __future__ import annotations

import json

import pytest

from tests.support.config_errors import error_of, write_config
from wmpo_ray.config.dumping import config_to_json, flatten
from wmpo_ray.config.loading import load_config, nearest_key, read_config_json, validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError


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
        ("grpo.ratio=word", "grpo.ratio = \"word\": it must be 'chunk', 'step' or 'token'"),
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
        (["world_model.kind=simulator", "rollout.slots=4"], "rollout.slots=4 needs a learned world_model.kind"),
        (["rollout.world=environment", "rollout.slots=4"], "slots=4: an environment steps all of its scenes together"),
        (["weights.per_step=true"], 'weights.per_step=true sends deltas and weights.payload="full"; set'),
        (["policy.kind=openvla_oft"], 'policy.pretrained = "": policy.kind = "openvla_oft" has no fresh network'),
        (["reward.kind=videomae_published"], 'reward.pretrained = "": reward.kind = "videomae_published" has no fresh'),
        (["policy.cloning.steps=0"], "policy.cloning.steps=0 takes a policy as it is, and there is none"),
        (
            ["reward.threshold=0.6", "reward.max_false_positive_rate=0.1"],
            "reward.threshold=0.6 is taken as it is, so reward.max",
        ),
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
def test_settings_that_do_not_fit_each_other_are_refused(tmp_path, overrides, message):
    sizes = "horizon = 32\n[rollout]\nchunk_length = 4\ngroup_size = 8\ngroups_per_update = 64\n"
    assert error_of(write_config(tmp_path, f"[environment]\n{sizes}"), *overrides).startswith(message)


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
def test_a_hostile_file_is_a_line(tmp_path, text):
    assert len(error_of(write_config(tmp_path, text)).splitlines()) == 1


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


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["rollout.num_chunks=9"], ("rollout.num_chunks=9", "the 8 of an episode")),
        (["rollout.num_chunks=1", "reward.clip_length=6"], ("5 frames", "reward.clip_length=6")),
        (["recipe.kind=grpo-online", "rollout.keyframes_per_episode=2"], ("keyframes_per_episode=2", "set both to 0")),
        (["world_model.kind=simulator", "rollout.keyframes_per_episode=2"], ("learned world_model.kind", "simulator")),
        (["filter.dynamic_sampling=false", "filter.max_mean=0.9"], ("filter.max_mean=0.9", "every group")),
        (["reward.label_noise.false_positives=1.5"], ("reward.label_noise.false_positives", "1.5")),
        (["world_model.alignment.action_level=video"], ("world_model.alignment.action_level", "clip")),
    ],
)
def test_settings_of_comparisons_say_what_is_wrong(settings, parts):
    message = error_of("demo", *settings)
    assert all(part in message for part in parts), message


def test_a_runs_file_may_have_other_defaults_of_algorithms_that_it_did_not_choose(tmp_path):
    path = tmp_path / "config.json"
    data = json.loads(config_to_json(load_config("smoke")))
    data["filtered_bc"]["learning_rate"] = 0.123
    path.write_text(json.dumps(data))
    assert read_config_json(path) == load_config("smoke")
    data["grpo"]["learning_rate"] = -1.0
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="grpo.learning_rate"):
        read_config_json(path)
