"""Weights as training scripts leave them: behind prefixes, in dictionaries, by any pickle protocol, in any dtype."""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.hostile_files import Code
from wmpo_ray.checkpoints.inspection import inspect_path
from wmpo_ray.core.errors import UserError
from wmpo_ray.model_files.pickled_tensors import MAX_WRAPPERS, open_pickled
from wmpo_ray.model_files.weight_files import find_weights, read_tensors
from wmpo_ray.world_models.published_stdit import load_published_network

WEIGHTS = load_file(Path(__file__).parents[1] / "golden" / "world_model" / "model.safetensors")
NAME = "t_block.1.bias"
PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "a.network.", "model.module."]


def save(content: Any, path: Path, protocol: int = 2) -> Path:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of unusual protocols
        torch.save(content, path, pickle_protocol=protocol)
    return path


def behind(prefix: str, tensors: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def assert_is_the_world_model(path: Path) -> None:
    state = load_published_network(path, drop_dead=False).state_dict()
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in state.items())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_weights(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


# -- prefixes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_tensors_is_taken_off_and_reported(tmp_path, caplog, prefix):
    save_file(behind(prefix), tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO, "wmpo_ray"):
        assert_is_the_world_model(tmp_path)
    found = inspect_path(tmp_path)
    assert found.loadable and found.num_fitting == len(WEIGHTS)
    for part in filter(None, prefix.split(".")):
        assert part in found.facts()["layout"] and part in caplog.text


def test_wrappers_around_parts_of_a_network_are_taken_off(tmp_path):
    wrapped = {name.replace("spatial_blocks.0.", "spatial_blocks.0._orig_mod."): t for name, t in WEIGHTS.items()}
    assert wrapped.keys() != WEIGHTS.keys()
    save_file(wrapped, tmp_path / "model.safetensors")
    assert_is_the_world_model(tmp_path)
    assert "'_orig_mod.'" in inspect_path(tmp_path).facts()["layout"]


def test_a_prefix_of_some_tensors_alone_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(behind("model.") | behind("ema.", {NAME: WEIGHTS[NAME] + 1}), path)
    message = refusal(path)
    assert f"{len(WEIGHTS)} of {len(WEIGHTS) + 1} tensors have the prefix 'model.'" in message
    assert f"ema.{NAME}" in message
    save_file(WEIGHTS | {f"_orig_mod.{NAME}": WEIGHTS[NAME] + 1}, path)
    assert "holds both" in refusal(path)


def test_the_prefix_of_an_adapter_is_no_wrapper(tmp_path):
    name = "language_model.model.embed_tokens.weight"
    save_file({f"base_model.model.{name}": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert "merge it" in inspect_path(tmp_path).kind


# -- dictionaries of training scripts ----------------------------------------------------------------------------

OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}


@pytest.mark.parametrize("keys", [("model_state_dict",), ("net",), ("state_dict",), ("ema",), ("checkpoint", "model")])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_weights_in_a_dictionary_are_taken_out_of_it(tmp_path, keys, protocol):
    content: Any = OrderedDict(behind("module."))
    for key in reversed(keys):
        content = {key: content}
    rest = {"epoch": 3, "optimizer": OPTIMIZER, "best": 0.5, "args": ["--lr", None], "rng": torch.zeros(3)}
    save(content | rest, tmp_path / "model.pth", protocol)
    assert_is_the_world_model(tmp_path)
    layout = inspect_path(tmp_path).facts()["layout"]
    assert f"taken out of '{'.'.join(keys)}', without the prefix 'module.'" in layout


def test_averaged_weights_in_a_dictionary_come_before_raw_ones_if_they_are_wanted(tmp_path):
    path = save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    assert open_pickled(path).tensors["a"] == 1 and open_pickled(path).wrappers == ("ema",)
    assert open_pickled(path, ema=False).tensors["a"] == 0


def test_dictionaries_of_unknown_names_are_not_guessed_at(tmp_path):
    path = save({"one": {"a": torch.zeros(1)}, "two": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    assert "several sets of tensors, one, two" in refusal(path)
    content: Any = {"a": torch.zeros(1)}
    for _ in range(MAX_WRAPPERS + 1):
        content = {"model": content}
    assert "no tensor under" in refusal(save(content, path))


# -- pickle protocols --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_gives_the_same_tensors(tmp_path, protocol):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    state = dict(network.state_dict()) | {"transposed": torch.arange(12.0).view(3, 4).T, "empty": torch.zeros(0, 3)}
    state |= {"tied": state["transposed"], "parameter": torch.nn.Parameter(torch.ones(2))}
    state |= {str(i): torch.full((2,), float(i)) for i in range(300)}  # more than a byte counts
    tensors = open_pickled(save(state, tmp_path / "a.pt", protocol)).tensors
    assert tensors.keys() == state.keys() and not any(tensor.requires_grad for tensor in tensors.values())
    assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in state.items())


class Room:
    """A list of tensors that asks for memory: `torch.load` would give it."""

    def __reduce__(self):
        return bytearray, (2**40,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_no_tensor_is_named_and_not_run(tmp_path, protocol):
    path = tmp_path / "a.pt"
    for value, told in (
        (Code(tmp_path / "ran"), "system"),
        (Room(), "bytearray"),
        (tmp_path, "pathlib"),
        (torch.nn.Linear(1, 1), "torch.nn|NEWOBJ"),
        (torch.eye(2).to_sparse(), "sparse"),
        (bytearray(3), 'bytearray|no tensor under "x"'),
    ):
        with pytest.raises(UserError, match=rf"a\.pt.*({told})") as caught:
            open_pickled(save({**WEIGHTS, "x": value}, path, protocol))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_that_torch_never_used_are_named(tmp_path, protocol):
    assert "protocol" in refusal(save({"a": torch.zeros(1)}, tmp_path / "a.pt", protocol))


def test_one_element_seen_many_times_is_refused(tmp_path):
    assert "claims 1000000" in refusal(save({"a": torch.zeros(1).expand(10**6)}, tmp_path / "a.pt"))


# -- dtypes ------------------------------------------------------------------------------------------------------

OTHER_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128, torch.int8, torch.uint8]
OTHER_DTYPES += [torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_dtype_that_is_not_computed_with_ends_in_one_line(tmp_path, dtype, name):
    tensors = WEIGHTS | {NAME: torch.zeros(WEIGHTS[NAME].shape).to(dtype)}
    try:
        (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    except KeyError:
        pytest.skip("safetensors has no name for it")
    found = inspect_path(tmp_path)
    assert not found.loadable and len(found.wrong) == 1 and NAME in found.wrong[0] and "convert it" in found.wrong[0]
    with pytest.raises(UserError, match=rf"{NAME} is .*the network has one of F64, F32, F16, BF16") as caught:
        load_published_network(tmp_path)
    assert "\n" not in str(caught.value)


def test_quantised_tensors_and_those_without_values_are_named(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for value in (quantised, torch.zeros(3, device="meta")):
        assert "a.pt" in refusal(save({"a": value}, tmp_path / "a.pt"))


# -- memory ------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_file_is_mapped_and_read_a_part_at_a_time(tmp_path, protocol):
    size = 2**22  # bytes of each of 32 tensors
    state = {str(i): torch.full((size // 4,), float(i)) for i in range(32)}
    path = save(state, tmp_path / "a.pt", protocol)
    del state
    files = find_weights(path)
    before, most = resident_bytes(), 0
    for name, tensor in read_tensors(files):
        assert tensor.sum() == float(name) * size / 4
        most = max(most, resident_bytes() - before)
    assert most < 32 * size / 2
