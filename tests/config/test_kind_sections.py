"""A section is that of its kind: what belongs to another kind is refused, and a preset's kind can be changed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.config_errors import error_of
from wmpo_ray.config.dumping import config_differences, config_to_json
from wmpo_ray.config.loading import load_config, read_config_json
from wmpo_ray.core.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "key", "owner", "chosen"),
    [
        (["policy.openvla.lora_rank=8"], "policy.openvla.lora_rank = 8", '"openvla_oft"', '"tiny"'),
        (["policy.openvla.lora_rank=0"], "policy.openvla.lora_rank = 0", '"openvla_oft"', '"tiny"'),
        (
            ["policy.kind=openvla_oft", "policy.network={width=8}"],
            "policy.network.width = 8",
            '"flow" or "tiny"',
            '"openvla_oft"',
        ),
        (["policy.flow.noise=1"], "policy.flow.noise = 1", '"flow" or "pi0" or "smolvla"', '"tiny"'),
        (
            ["world_model.kind=simulator", "world_model.sampler.num_steps=1"],
            "world_model.sampler.num_steps = 1",
            '"diffusion"',
            '"simulator"',
        ),
        (
            ["world_model.kind=simulator", "world_model.compile=true"],
            "world_model.compile = true",
            '"diffusion"',
            '"sim',
        ),
    ],
)
def test_a_setting_of_another_kind_is_refused_with_its_owner(overrides, key, owner, chosen):
    table = key.split(".")[0]
    message = error_of("smoke", *overrides)
    assert message.startswith(f"{key}: this is a setting of {table}.kind = {owner}, and {table}.kind is {chosen}")


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("policy.kind=huge", "['flow', 'openvla_oft', 'pi0', 'smolvla', 'tiny']"),
        ("world_model.kind=huge", "['diffusion', 'simulator']"),
        ("reward.kind=huge", "['frame', 'videomae', 'videomae_published', 'vlm']"),
        (
            "environment.kind=huge",
            "['aloha', 'gymnasium', 'lift', 'metaworld', 'mimicgen', 'pocket', 'pusht', 'remote', 'robosuite', 'stack']",
        ),
    ],
)
def test_an_unknown_kind_lists_the_known_ones(override, known):
    key = override.partition("=")[0]
    assert error_of("demo", override).startswith(f"{key}='huge' is unknown; known are {known[:-1]}")


def test_a_kind_that_is_changed_takes_the_settings_of_the_preset_with_it(tmp_path):
    assert not hasattr(load_config("perfect-world").world_model, "network")
    other = load_config("coffee", ["policy.kind=tiny", "policy.network.width=8"])
    assert other.policy.network.width == 8 and other.policy.cloning == load_config("coffee").policy.cloning
    file = tmp_path / "config.toml"
    file.write_text('preset = "smoke"\n[policy.network]\nwidth = 8\n')
    assert "policy.network.width = 8" in error_of(str(file), "policy.kind=openvla_oft"), "the user's own settings stay"


def test_differences_of_kinds_list_what_was_chosen():
    diffusion = load_config("smoke", ["world_model.network.depth=5"])
    lines = config_differences(diffusion, load_config("smoke", ["world_model.kind=simulator"]))
    assert lines[0] == 'world_model.kind: "diffusion" -> "simulator"'
    assert set(lines[1:]) == {
        "world_model.alignment.steps: 4 -> none",
        "world_model.alignment.batch_size: 8 -> none",
        "world_model.alignment.warmup_steps: 2 -> none",
        "world_model.network.depth: 5 -> none",
    }


def test_a_run_folder_of_an_earlier_version_lists_settings_of_every_kind(tmp_path):
    path = tmp_path / "config.json"
    for preset in ("demo", "perfect-world"):
        data = json.loads(config_to_json(load_config(preset)))
        data["policy"]["openvla"] = {"lora_rank": 0, "compute_dtype": "bfloat16"}
        data["world_model"] |= {"compile": False, "network": {"depth": 3}} if preset == "perfect-world" else {}
        path.write_text(json.dumps(data))
        assert read_config_json(path) == load_config(preset)
    data["policy"]["opnvla"] = {}
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="unknown key policy.opnvla"):
        read_config_json(path)


def test_a_config_is_read_without_torch():
    code = "import sys; from wmpo_ray.config.loading import load_config, list_presets\n"
    code += "[load_config(name) for name in list_presets()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
