"""A set of published checkpoints goes through every stage of a run, by a config that names them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.recipes.pipeline import run_pipeline
from tests.support.published_set import CHUNK, HORIZON, published_settings, write_published_set
from wmpo_ray.checkpoints.inspection import inspect_path
from wmpo_ray.config.loading import validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.published_stdit import load_published_network


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_published_set(tmp_path_factory.mktemp("published"))


def config_of(folders: dict[str, Path], **changes: dict[str, Any]) -> Config:
    settings = published_settings(folders)
    for section, values in changes.items():
        settings[section] |= values
    return validate(settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ; both folders hold the same names."""
    first, second = weights(before), weights(after)
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory) -> Path:
    """Everything as it was published, then full fine-tuning."""
    out = tmp_path_factory.mktemp("runs") / "full"
    run_pipeline(config_of(folders), out, serial=True)
    return out


def test_what_is_not_trained_is_what_was_published_bit_for_bit(folders, whole):
    assert changed(folders["policy"], whole / "models" / "base-policy") == set()
    ours = DiffusionWorldModel.load(whole / "models" / "world-model").denoiser.network.state_dict()
    theirs = load_published_network(folders["world-model"]).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    codec = load_file(whole / "models" / "world-model" / "autoencoder" / "diffusion_pytorch_model.safetensors")
    published = load_file(folders["codec"] / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(codec[name], published[name]) for name in published)
    assert changed(folders["reward"], whole / "models" / "reward-model") == set()


def test_settings_of_the_run_stand_in_what_it_saves(whole):
    world = DiffusionWorldModel.load(whole / "models" / "world-model")
    assert world.chunk_length == CHUNK and world.sampler.config.num_steps == 2
    assert PublishedRewardModel.load(whole / "models" / "reward-model").threshold == 0.5


def test_every_stage_is_done_and_grpo_moves_the_weights(folders, whole):
    run = RunFolder(whole)
    assert list(run.summary["stages"]) == run.summary["recipe"]["stages"]
    assert run.metrics("optimize")["num_updates"] == 1
    moved = changed(whole / "models" / "base-policy", whole / "models" / "policy")
    parts = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer", "projector", "language_model.model")
    assert all(any(name.startswith(part) for name in moved) for part in parts)


def test_the_final_policy_is_a_published_folder_again(folders, whole, tmp_path):
    policy = OpenVLAOFTPolicy.load(whole / "models" / "policy")
    assert (policy.chunk_length, policy.action_dim) == (CHUNK, 3)
    companions = {p.name for p in folders["policy"].iterdir()}
    assert {p.name for p in (whole / "models" / "policy").iterdir()} == companions
    following = {**folders, "policy": whole / "models" / "policy"}
    run_pipeline(config_of(following), tmp_path / "next", serial=True, until="policy")
    assert changed(whole / "models" / "policy", tmp_path / "next" / "models" / "base-policy") == set()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="adapters need peft")
def test_adapters_train_nothing_but_what_they_are_put_on_and_end_in_the_weights(folders, whole, tmp_path):
    settings = published_settings(folders)
    settings["policy"]["openvla"] |= {"lora_rank": 2, "lora_alpha": 4, "gradient_checkpointing": True}
    run_pipeline(validate(settings), tmp_path / "lora", serial=True)
    models = tmp_path / "lora" / "models"
    assert changed(folders["policy"], models / "base-policy") == set()
    moved = changed(models / "base-policy", models / "policy")
    assert moved and not any("norm" in name or "embed_tokens" in name or "lm_head" in name for name in moved)


def test_every_supervised_stage_trains_the_published_models_on(folders, tmp_path):
    settings = published_settings(folders)
    settings["policy"]["cloning"]["steps"] = 1
    settings["world_model"]["alignment"]["steps"] = 1
    settings["reward"] |= {"steps": 1, "threshold": 0.0}
    settings["environment"]["horizon"] = HORIZON
    run_pipeline(validate(settings), tmp_path / "trained", serial=True, until="world-model")
    models = tmp_path / "trained" / "models"
    assert changed(folders["policy"], models / "base-policy")
    ours = DiffusionWorldModel.load(models / "world-model").denoiser.network.state_dict()
    theirs = load_published_network(folders["world-model"]).state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("section", ["policy", "world_model", "reward"])
def test_weights_that_are_nowhere_are_named_before_the_first_stage(folders, tmp_path, section):
    config = config_of(folders, **{section: {"pretrained": str(tmp_path / "no-such-folder")}})
    with pytest.raises(UserError, match=rf"{section}\.pretrained = .*no-such-folder"):
        run_pipeline(config, tmp_path / "run", serial=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_labels", [1, 3, 400])
def test_a_classifier_without_two_outputs_is_refused_before_the_first_stage(folders, tmp_path, num_labels):
    reward = shutil.copytree(folders["reward"], tmp_path / "reward")
    tensors = load_file(reward / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][:1].repeat(num_labels, *[1] * (tensors[name].ndim - 1))
    save_file(tensors, reward / "model.safetensors")
    config = config_of(folders, reward={"pretrained": str(reward)})
    with pytest.raises(UserError, match=f"reward.pretrained: .*the classifier has {num_labels} outputs?"):
        run_pipeline(config, tmp_path / "run", serial=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=f"{num_labels} outputs?"):
        PublishedRewardModel.load(reward)
    assert f"{num_labels} output" in inspect_path(reward).problems[0]
