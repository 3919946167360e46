"""Every published fixture passes through the public classes, and a wrong number in one is noticed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.cli.app import app
from wmpo_ray.core.errors import UserError
from wmpo_ray.parity import fixtures as run
from wmpo_ray.parity import flow_fixtures as flow
from wmpo_ray.parity import grpo_fixtures as grpo
from wmpo_ray.parity import manifests
from wmpo_ray.parity import reward_fixtures as reward
from wmpo_ray.parity import vae_fixtures as vae
from wmpo_ray.parity import world_model_fixtures as world_model
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, differing
from wmpo_ray.world_models.stdit import STDiT

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKS = {
    "world_model": world_model,
    "vae": vae,
    "reward": reward,
    "grpo": grpo,
    "smolvla": flow,
    "pi0": flow,
    "pi05": flow,
    "manifests": manifests,
}


@pytest.mark.parametrize("name", CHECKS)
def test_all_published_numbers_are_ours(name):
    cases = CHECKS[name].check(GOLDEN / name)
    assert cases and not [case for case in cases if not case.passed]


@pytest.mark.parametrize(
    ("name", "file", "tensor", "change"),
    [
        ("vae", "encode_decode.safetensors", "latent_mean", 1e-3),
        ("vae", "encode_decode.safetensors", "decoded_uint8_BTHWC", 1),
        ("reward", "scores.safetensors", "score_sigmoid_logit1", 1e-4),
        ("smolvla", "forward.safetensors", "losses", 1e-3),
        ("smolvla", "forward.safetensors", "chunk", 1e-3),
        ("smolvla", "decision.safetensors", "decision", 1e-3),
        ("pi0", "forward.safetensors", "losses", 1e-3),
        ("pi05", "decision.safetensors", "decision", 1e-3),
        ("grpo", "grpo.safetensors", "paper_advantages", 1e-8),
        ("grpo", "grpo.safetensors", "official_loss_minibatch", 1e-4),
    ],
)
def test_a_number_that_is_not_ours_fails_its_case_and_no_other(tmp_path, name, file, tensor, change):
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    tensors = load_file(folder / file)
    tensors[tensor] = tensors[tensor] + change
    save_file(tensors, folder / file)
    failed = {case.tensor for case in CHECKS[name].check(folder) if not case.passed}
    # The chunk objective takes the published advantages as its input.
    assert tensor in failed and all(other == tensor or other.startswith("paper_objective") for other in failed)


def test_a_weight_that_is_not_published_fails_the_forward_pass(tmp_path):
    folder = tmp_path / "world_model"
    folder.mkdir()
    for name in ("config.json", "forward_b.safetensors"):
        shutil.copy(GOLDEN / "world_model" / name, folder)
    weights = load_file(GOLDEN / "world_model" / "model.safetensors")
    weights["temporal_blocks.0.attn.q_norm.weight"][0] += 0.01
    save_file(weights, folder / "model.safetensors")
    failed = {case.tensor for case in world_model.check(folder) if not case.passed}
    assert failed == {"output", "output, from the conditioning cache"}


@pytest.mark.parametrize(("kind", "name"), [("smolvla", "state_proj.weight"), ("pi0", "state_proj.weight")])
@pytest.mark.parametrize("change", ["missing", "foreign", "shape"])
def test_a_weight_that_is_none_of_a_published_network_is_refused(tmp_path, kind, name, change):
    folder = shutil.copytree(GOLDEN / kind, tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    first = weights[f"model.{name}"]
    if change == "missing":
        del weights[f"model.{name}"]
    else:
        weights[f"model.{name}" if change == "shape" else "model.project.weight"] = first.T.contiguous()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match="the weights (lack|hold in addition|have the wrong shape)"):
        flow.check(folder)


def test_a_published_name_that_would_not_be_saved_is_counted(tmp_path):
    folder = shutil.copytree(GOLDEN / "pi0", tmp_path / "pi0")
    weights = load_file(folder / "model.safetensors")
    del weights["model.paligemma_with_expert.gemma_expert.lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    failed = [(case.tensor, case.max_error) for case in flow.check(folder) if not case.passed]
    assert failed == [("names and shapes", 1)]
    (folder / "case.json").write_text("{}")
    with pytest.raises(UserError, match="no case of a flow policy"):
        flow.check(folder)


def test_the_world_model_is_compared_with_the_plain_attention(monkeypatch):
    """A fused kernel sums in another order: with fixtures of other sizes that alone can be more than the tolerance."""
    chosen, choose = [], STDiT.choose_attention

    def noted(network, wanted="auto"):
        chosen.append(choose(network, wanted))
        return chosen[-1]

    monkeypatch.setattr(STDiT, "choose_attention", noted)
    world_model.check(GOLDEN / "world_model")
    assert set(chosen) == {"plain"}


def test_nan_and_another_shape_fail_and_the_tolerance_itself_passes():
    assert ParityCase("a", "x", 0.5, 0.5).passed
    assert not ParityCase("a", "x", 0.5000001, 0.5).passed
    assert not ParityCase("a", "x", float("nan"), 0.5).passed
    one = torch.ones(2, 3)
    assert compared("a", "x", one, one, 0.0).passed and differing("a", "x", one, one).passed
    for other in (torch.ones(3, 2), torch.ones(2, 1), torch.full((2, 3), float("nan"))):
        assert not compared("a", "x", one, other, 1e9).passed
        assert not differing("a", "x", one, other).passed
    assert not compared("a", "x", torch.ones(0), torch.ones(0), 1.0).passed, "nothing was compared"


def test_a_fixture_that_nothing_reads_is_said_and_one_of_none_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FIXTURES", {"grpo": "grpo_fixtures", "tactile": "tactile"})
    with pytest.raises(UserError, match="holds no fixtures"):
        list(run.run_fixtures(tmp_path))
    (tmp_path / "tactile").mkdir()
    shutil.copytree(GOLDEN / "grpo", tmp_path / "grpo")
    found = dict(run.run_fixtures(tmp_path))
    assert found["tactile"] is None and all(case.passed for case in found["grpo"])


def test_the_command_exits_with_0_1_and_2(tmp_path):
    def parity(folder: Path):
        return CliRunner().invoke(app, ["parity", str(folder)], env={"COLUMNS": "200"})

    assert parity(tmp_path).exit_code == 2
    folder = shutil.copytree(GOLDEN / "grpo", tmp_path / "grpo")
    result = parity(tmp_path)
    assert result.exit_code == 0 and "paper_advantages" in result.stdout and "0 failed" in result.stdout
    assert "attention of the world model: plain" in result.stdout
    tensors = load_file(folder / "grpo.safetensors")
    tensors["official_loss_minibatch"] += 1
    save_file(tensors, folder / "grpo.safetensors")
    result = parity(tmp_path)
    assert result.exit_code == 1 and "FAILED" in result.stdout and "1 failed" in result.stdout
