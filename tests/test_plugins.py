"""Packages from outside bring kinds of their own, and a broken one harms nobody who does not ask for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.host.doctor import Verdict, check_plugins
from learners.policy_learner import PolicyLearner
from learners.supervised.jobs import CloningJob
from learners.supervised.loop import WHOLE
from learners.supervised.training_actor import Course
from learners.supervised.training_state import NO_CHECKPOINTS
from tests.support.plugin_package import OTHERS, POLICY, install_package
from tests.support.sampling import sampled_trajectories
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.config.dumping import config_to_json, config_to_toml
from wmpo_ray.config.loading import load_config, read_config_json
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.kinds import POLICIES, TABLES
from wmpo_ray.planning.plan import make_plan
from wmpo_ray.registry import check_kinds, create_reward_model, load_policy, load_world_model, make_environment
from wmpo_ray.rollout.evaluation import rollout_expert

SETTINGS = [
    "policy.kind=linear",
    "policy.linear.num_bins=8",
    "policy.cloning.steps=40",
    "rollout.groups_per_update=2",
    "grpo.minibatch_trajectories=8",
    "grpo.learning_rate=1e-3",
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    kinds = {
        "linear": ("linear-policy", POLICY, {"policies": {"linear": "LinearKind"}}),
        "broken": ("broken-policy", "import no_such_library", {"policies": {"broken": "Kind", "tiny": "Kind"}}),
        "same name": ("other-policy", POLICY, {"policies": {"linear": "LinearKind"}}),
        "empty": ("empty-policy", "class Kind:\n    section = 3\n", {"policies": {"empty": "Kind"}}),
        "room": (
            "room-policy",
            OTHERS,
            {
                "environments": {"room": "RoomKind"},
                "world_models": {"room_world": "RoomWorldKind"},
                "reward_models": {"room_reward": "RoomRewardKind"},
            },
        ),
    }
    return {name: install_package(folder, *package) for name, package in kinds.items()}


@pytest.fixture
def install(packages, monkeypatch):
    def put_on_the_path(*names: str) -> None:
        for name in names:
            monkeypatch.syspath_prepend(str(packages[name]))

    before = set(sys.modules)
    for table in TABLES:
        monkeypatch.setattr(table, "_found", dict(table._found))
    yield put_on_the_path
    for module in set(sys.modules) - before:
        if module.endswith("_policy"):
            del sys.modules[module]


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config("smoke", overrides)
    return str(caught.value)


def test_a_config_has_the_section_of_an_installed_kind(install, tmp_path):
    install("linear")
    config = load_config("smoke", ["policy.kind=linear", "policy.linear.num_bins=8"])
    assert config.policy.linear.num_bins == 8
    assert not hasattr(config.policy, "network"), "what the preset says of its own kind is not carried over"
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config
    (tmp_path / "config.json").write_text(config_to_json(config))
    assert read_config_json(tmp_path / "config.json") == config
    assert error_of("policy.linear.num_bins=8") == (
        'policy.linear.num_bins = 8: this is a setting of policy.kind = "linear", and policy.kind is "tiny"; remove the '
        "key or change policy.kind"
    )
    wrong = error_of("policy.kind=linear", "policy.linear.num_bins=0", "policy.network.width=8")
    assert wrong.splitlines()[0] == "policy.linear.num_bins = 0: it must be greater than or equal to 1"
    assert wrong.splitlines()[1].startswith("policy.network.width = 8: this is a setting of policy.kind = ")


def test_an_installed_policy_is_cloned_and_updated(install, tmp_path):
    install("linear")
    config = load_config("smoke", SETTINGS)
    demos = rollout_expert(PocketEnvironment(16), np.arange(8), 0.1, (0, "demos"))
    job = CloningJob(config, demos, tmp_path / "policy")
    losses: list[float] = []
    course = Course(job, WHOLE, torch.device("cpu"), NO_CHECKPOINTS)
    course.advance(lambda step, metrics: losses.append(metrics["loss"]))
    course.finish()
    assert losses[-1] < losses[0]
    learner = PolicyLearner(config, str(tmp_path / "policy"), str(tmp_path / "checkpoints"))
    frames = np.random.default_rng(0).integers(0, 255, (8, 2, 16, 16, 3)).astype(np.uint8)
    texts = demos.instructions[:8]
    trajectories = sampled_trajectories(learner.policy, frames, texts)
    success = np.array([True, False, False, True])
    groups = [GroupSlice(((0, (i * 4, (i + 1) * 4)),), success, np.full(4, 8)) for i in range(2)]
    before = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    learner.update(groups, UpdateFacts({}, [(0, 0), (0, 1)], 0), trajectories)
    assert any(not torch.equal(before[name], tensor) for name, tensor in learner.policy.state_dict().items())
    assert load_policy(config, str(tmp_path / "policy")).num_bins == 8


def test_a_plan_of_a_kind_without_a_blueprint_says_so(install):
    install("linear")
    with pytest.raises(ConfigError, match="policy.kind='linear' has no blueprint, so that no plan can be made of it"):
        make_plan(load_config("smoke", ["policy.kind=linear"]))


def test_every_table_takes_kinds_of_packages(install):
    install("room")
    kinds = ["environment.kind=room", "world_model.kind=room_world", "reward.kind=room_reward"]
    config = load_config("smoke", [*kinds, "environment.friction=0.25", "reward.patience=3"])
    check_kinds(config)
    assert make_environment(config.environment).friction == 0.25
    assert environment_facts(config.environment).instructions == ("cross the room",)
    assert load_world_model(config, "").chunk_length == config.rollout.chunk_length
    assert not config.world_model.is_learned and config.world_model.alignment.steps == 0
    assert config.reward.patience == 3 and create_reward_model(config, 16, ()).clip_length == config.reward.clip_length
    assert error_of("environment.friction=1").startswith(
        "environment.friction = 1: this is a setting of environment.kind"
    )


def test_what_is_installed_is_listed(install):
    install("linear", "broken", "empty")
    known = "['broken', 'empty', 'flow', 'linear', 'openvla_oft', 'pi0', 'smolvla', 'tiny']"
    assert error_of("policy.kind=huge") == f"policy.kind='huge' is unknown; known are {known}"
    listed = CliRunner().invoke(app, ["presets", "--kinds"])
    assert "policy.kind: broken, empty, flow, linear, openvla_oft, pi0, smolvla, tiny" in listed.output.splitlines()
    checks = {check.name: check for check in check_plugins()}
    assert checks["plugin linear"].verdict is Verdict.OK and "linear-policy" in checks["plugin linear"].detail
    assert checks["plugin broken"].verdict is Verdict.WARN and "no_such_library" in checks["plugin broken"].detail
    assert checks["plugin tiny"].verdict is Verdict.WARN and "one of ours" in checks["plugin tiny"].detail
    assert checks["plugin empty"].verdict is Verdict.WARN and "has no create, load" in checks["plugin empty"].detail


def test_a_broken_package_is_one_line_and_harms_nobody_else(install):
    install("broken", "empty")
    assert load_config("smoke").policy.kind == "tiny" and type(POLICIES.find("tiny")).__name__ == "TinyKind"
    message = error_of("policy.kind=broken")
    assert message.startswith(
        "policy.kind='broken', registered by the package broken-policy: broken_policy:Kind cannot"
    )
    assert "ModuleNotFoundError: No module named 'no_such_library'" in message and len(message.splitlines()) == 1
    assert "has no create, load, pretrained, blueprint" in error_of("policy.kind=empty")
    assert error_of("policy.linear.num_bins=8").startswith("unknown key policy.linear; did you mean ")


def test_a_name_of_two_packages_is_neither_of_them(install):
    install("linear", "same name")
    assert "is registered by linear-policy and other-policy; uninstall one of them" in error_of("policy.kind=linear")
    assert load_config("smoke").policy.kind == "tiny"
