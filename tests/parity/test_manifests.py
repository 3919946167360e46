"""Full-size networks have the published names and shapes."""

import json
from pathlib import Path

import torch

from wmpo_ray.parity.manifests import manifest_mismatches
from wmpo_ray.world_models.stdit import STDiT, is_dead

GOLDEN = Path(__file__).parents[1] / "golden" / "manifests"


def test_names_and_shapes_are_the_published_ones():
    found = manifest_mismatches(GOLDEN)
    assert found == {"stdit3_xl2_wmpo": [], "sdxl_vae": [], "videomae_base_cls": [], "openvla_7b_hf": []}


def test_every_kind_of_mismatch_is_a_line(tmp_path):
    manifest = json.loads((GOLDEN / "videomae_base_cls.json").read_text())
    tensors = manifest["tensors"]
    tensors["classifier.bias"]["shape"] = [3]
    tensors["classifier.scale"] = tensors.pop("fc_norm.bias")
    (tmp_path / "videomae_base_cls.json").write_text(json.dumps(manifest))
    lines = manifest_mismatches(tmp_path)["videomae_base_cls"]
    assert lines == [
        "classifier.bias: (2,), published (3,)",
        "classifier.scale: not in the network",
        "fc_norm.bias: not published",
    ]
    assert manifest_mismatches(tmp_path / "empty") == {}


def test_the_preset_has_the_published_number_of_parameters_dead_and_alive():
    manifest = json.loads((GOLDEN / "stdit3_xl2_wmpo.json").read_text())
    with torch.device("meta"):
        whole, lean = (STDiT.from_preset("XL/2", keep_unused_parameters=keep) for keep in (True, False))
    # The published count is of parameters; the caption table is a buffer.
    buffers = sum(manifest["tensors"][name]["shape"][0] * 4096 for name in manifest["persistent_buffers"])
    count = sum(tensor.numel() for tensor in whole.state_dict().values())
    assert count in (manifest["total_parameters"], manifest["total_parameters"] + buffers)
    dead = sum(parameter.numel() for name, parameter in whole.named_parameters() if is_dead(name))
    assert count - sum(tensor.numel() for tensor in lean.state_dict().values()) in (dead, dead + buffers)
    assert manifest["dead_parameters"] - dead in (0, whole.config.hidden_size), "none_action is alive in ours"
