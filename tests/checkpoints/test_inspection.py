"""What a checkpoint is, in another layout, and what is refused: broken and hostile files end in a line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.hostile_files import Code
from wmpo_ray.checkpoints.conversion import convert_checkpoint
from wmpo_ray.checkpoints.inspection import inspect_path
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.model_files import weight_files
from wmpo_ray.model_files.weight_files import find_weights
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.published_stdit import load_published_network
from wmpo_ray.world_models.stdit import is_dead

GOLDEN = Path(__file__).parents[1] / "golden"
WORLD_MODEL, VAE, REWARD = GOLDEN / "world_model" / "model.safetensors", GOLDEN / "vae", GOLDEN / "reward"


def weights(path: Path = WORLD_MODEL) -> dict[str, torch.Tensor]:
    return load_file(path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect_path(path)
    return str(caught.value)


def wmpo(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


# -- what it is --------------------------------------------------------------------------------------------------


def test_each_kind_is_known_by_its_tensors_and_fits():
    for path, kind in (
        (WORLD_MODEL, "world model"),
        (VAE, "autoencoder"),
        (REWARD / "model.safetensors", "reward model"),
    ):
        found = inspect_path(path)
        assert kind in found.kind and found.loadable, (found.missing, found.foreign, found.wrong)
        assert found.num_fitting == len(found.files.specs)
        assert found.files.num_parameters == sum(tensor.numel() for tensor in weights(found.files.parts[0]).values())
        assert found.files.num_bytes == 4 * found.files.num_parameters
    assert inspect_path(WORLD_MODEL).dead == [name for name in inspect_path(WORLD_MODEL).files.specs if is_dead(name)]


def test_missing_foreign_and_misshapen_tensors_and_values_are_listed(tmp_path):
    tensors = weights()
    del tensors["t_block.1.bias"]
    tensors["t_block.2.bias"] = torch.zeros(3)
    tensors["x_embedder.proj.bias"] = torch.zeros(5)
    tensors["final_layer.linear.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    found = inspect_path(tmp_path)
    assert found.missing == ["t_block.1.bias"] and found.foreign == ["t_block.2.bias"]
    assert len(found.wrong) == 1 and "x_embedder.proj.bias is F32 (5,)" in found.wrong[0]
    assert found.not_finite == ["final_layer.linear.bias"] and not found.loadable
    assert inspect_path(tmp_path, read_values=False).not_finite == []


def test_the_command_says_it_and_exits_with_0_1_and_2(tmp_path):
    result = wmpo("checkpoints", "inspect", WORLD_MODEL)
    assert result.exit_code == 0 and "world model (STDiT)" in result.stdout and "F32" in result.stdout
    tensors = weights()
    del tensors["t_block.1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    result = wmpo("checkpoints", "inspect", tmp_path)
    assert result.exit_code == 1 and "t_block.1.bias" in result.stdout
    assert wmpo("checkpoints", "inspect", tmp_path / "nowhere").exit_code == 2


# -- other layouts -----------------------------------------------------------------------------------------------


def test_a_world_model_goes_through_every_layout_and_back(tmp_path):
    torch.save(weights(), tmp_path / "ema.pt")
    convert_checkpoint(tmp_path, tmp_path / "network", "diffusers")
    assert load_published_network(tmp_path / "network").config.hidden_size == weights()["x_embedder.proj.bias"].shape[0]
    convert_checkpoint(tmp_path / "network", tmp_path / "reference", "reference", max_shard_size="500KB")
    found = inspect_path(tmp_path / "reference")
    assert found.loadable and len(found.files.parts) > 1 and set(found.files.specs) == set(weights())
    again = load_published_network(tmp_path / "reference", drop_dead=False).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights().items())


def test_a_world_model_with_its_autoencoder_is_what_a_run_loads(tmp_path):
    vae = shutil.copytree(VAE, tmp_path / "vae")
    (vae / "model.safetensors").rename(vae / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigError, match="--autoencoder"):
        convert_checkpoint(WORLD_MODEL, tmp_path / "out", "wmpo")
    result = wmpo("checkpoints", "convert", WORLD_MODEL, tmp_path / "out", "--layout", "wmpo", "--autoencoder", vae)
    assert result.exit_code == 0, result.output
    model = DiffusionWorldModel.load(tmp_path / "out")
    assert model.chunk_length == 8 and model.sampler.config.num_steps == 30
    assert "world model of wmpo" in inspect_path(tmp_path / "out").kind


def test_bf16_and_without_dead_parameters(tmp_path):
    convert_checkpoint(WORLD_MODEL, tmp_path / "out", "reference", dtype="bfloat16", drop_dead=True)
    found = inspect_path(tmp_path / "out")
    assert found.loadable and not found.dead
    assert {spec.dtype for spec in found.files.specs.values()} == {"BF16"}


def test_a_reward_model_becomes_a_transformers_folder(tmp_path):
    torch.save(weights(REWARD / "model.safetensors"), tmp_path / "reward.pth")
    shutil.copy(REWARD / "config.json", tmp_path)
    convert_checkpoint(tmp_path / "reward.pth", tmp_path / "out", "transformers")
    assert PublishedRewardModel.load(tmp_path / "out").clip_length == 8


@pytest.mark.parametrize(
    ("source", "layout", "named"),
    [
        (WORLD_MODEL, "transformers", "reference, diffusers, wmpo"),
        (VAE, "reference", "none"),
        (VAE, "x", "autoencoder"),
    ],
)
def test_a_layout_that_there_is_not_is_named_before_anything_is_written(tmp_path, source, layout, named):
    with pytest.raises(ConfigError, match=named):
        convert_checkpoint(source, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    with pytest.raises(UserError, match="exists"):
        convert_checkpoint(WORLD_MODEL, tmp_path, "reference")


# -- broken and hostile ------------------------------------------------------------------------------------------


def test_an_index_must_name_parts_that_are_there_and_hold_what_it_says(tmp_path):
    convert_checkpoint(WORLD_MODEL, tmp_path / "out", "reference", max_shard_size="500KB")
    index = tmp_path / "out" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, part = next(iter(content["weight_map"].items()))
    other = next(file for file in content["weight_map"].values() if file != part)
    for wrong, told in (
        ({name: "model-00009-of-00009.safetensors"}, "is missing"),
        ({name: other}, "where it is not"),
        ({"strange": part}, "'strange'|\"strange\""),
        ({name: "../model.safetensors"}, "only a name inside"),
        ({name: 3}, "lists no files"),
    ):
        index.write_text(json.dumps({**content, "weight_map": content["weight_map"] | wrong}))
        with pytest.raises(UserError, match=told):
            find_weights(tmp_path / "out")
    index.write_text(json.dumps(content))
    (tmp_path / "out" / part).unlink()
    assert part in refusal(tmp_path / "out")


def test_two_sets_of_weights_in_one_folder_are_not_guessed_at(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(WORLD_MODEL, tmp_path / name)
    assert "a.safetensors, b.safetensors" in refusal(tmp_path)
    assert inspect_path(tmp_path / "a.safetensors").loadable


def test_weights_that_are_wrong_are_refused_by_the_loaders(tmp_path):
    for name, tensor, told in (
        ("t_block.1.weight", torch.zeros(3, 3), "wrong shape"),
        ("t_block.1.bias", torch.full_like(weights()["t_block.1.bias"], float("inf")), "not finite"),
        ("extra", torch.zeros(1), "in addition extra"),
    ):
        save_file({**weights(), name: tensor}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=told):
            load_published_network(tmp_path)


def test_more_layers_than_the_weights_have_are_no_work(tmp_path):
    shutil.copy(WORLD_MODEL, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"depth": 10**9}))
    found = inspect_path(tmp_path)
    assert "depth = 1000000000" in found.problems[0] and found.facts()["can be loaded"] == "no"
    with pytest.raises(UserError, match="depth = 1000000000"):
        load_published_network(tmp_path)


def test_an_autoencoder_without_its_config_is_still_told(tmp_path):
    shutil.copy(VAE / "model.safetensors", tmp_path)
    found = inspect_path(tmp_path)
    assert "autoencoder" in found.kind and not found.loadable and "config.json" in found.problems[0]
    assert wmpo("checkpoints", "inspect", tmp_path).exit_code == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_weights_is_not_run(tmp_path, zipped):
    content = {**weights(), "x": Code(tmp_path / "ran")}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path)
    assert "pytorch_model.bin" in message and not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))  # the trap works
    assert (tmp_path / "ran").exists()


def test_reading_in_several_goes_gives_every_tensor_once(monkeypatch):
    monkeypatch.setattr(weight_files, "MAPPED_BYTES", 10_000)
    read = list(weight_files.read_tensors(find_weights(WORLD_MODEL)))
    assert len(read) == len(weights()) and {name for name, _ in read} == set(weights())
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in read)


def test_a_training_script_s_dictionary_without_weights_is_named(tmp_path):
    torch.save({"step": 3}, tmp_path / "a.pt")
    assert "no tensor under" in refusal(tmp_path / "a.pt")


def test_a_size_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r'max-shard = "abc": give a number and a unit, such as 5GB'):
        convert_checkpoint(WORLD_MODEL, tmp_path / "out", "reference", max_shard_size="abc")
    assert not (tmp_path / "out").exists()
