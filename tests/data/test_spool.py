"""Spooled trajectories: the same bits back, or a named reason."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from wmpo_ray.core.files import sha256_of
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Trajectories
from wmpo_ray.data.spool import (
    SpoolError,
    load_trajectories,
    remove_spooled,
    save_trajectories,
    spool_path,
)


def make_trajectories(seed: int = 0) -> Trajectories:
    rng = np.random.default_rng(seed)
    return Trajectories(
        # The main camera first, which is not the order of their names.
        {name: rng.integers(0, 255, (4, 2, 8, 8, 3)).astype(np.uint8) for name in ("wrist", "main")},
        ("push left", "öffne", "push left", ""),
        {"tokens": rng.integers(0, 255, (4, 2, 12)), "noise": rng.normal(size=(4, 2, 3, 5)).astype(np.float32)},
        rng.normal(size=(4, 2, 12)).astype(np.float32),
        rng.normal(size=(4, 2, 4, 3)).astype(np.float32),
        7,
        rng.normal(size=(4, 2, 6)).astype(np.float32),
    )


def entries(data: Trajectories) -> dict[str, np.ndarray]:
    """As they stand in the file."""
    return {
        **{f"images.{name}": images for name, images in data.images.items()},
        **{f"record.{name}": values for name, values in data.record.items()},
        "behavior_logprobs": data.behavior_logprobs,
        "actions": data.actions,
        "state": data.state,
    }


def test_what_is_read_is_what_was_written(tmp_path):
    data = make_trajectories()
    sha256 = save_trajectories(tmp_path / "a" / "b.safetensors", data)
    back = load_trajectories(tmp_path / "a" / "b.safetensors", sha256)
    assert back.instructions == data.instructions and back.version == 7
    assert list(back.images) == ["wrist", "main"] and entries(back).keys() == entries(data).keys()
    for name, theirs in entries(data).items():
        ours = entries(back)[name]
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_proprioception_is_optional(tmp_path):
    data = replace(make_trajectories(), state=None)
    back = load_trajectories(tmp_path / "a", save_trajectories(tmp_path / "a", data))
    assert back.state is None and np.array_equal(back.actions, data.actions)


def test_the_same_trajectories_give_the_same_file(tmp_path):
    first, second = (save_trajectories(tmp_path / name, make_trajectories()) for name in ("a", "b"))
    assert first == second != save_trajectories(tmp_path / "c", make_trajectories(1))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    sha256 = save_trajectories(path, make_trajectories())
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-5])
    with pytest.raises(SpoolError, match=r"a\.safetensors (is missing|was altered)"):
        load_trajectories(path, sha256)


def test_requests_have_files_of_their_own_and_go_with_their_update(tmp_path):
    start = StartState(np.zeros((1, 8, 8, 3), np.uint8), "go")
    requests = [
        RolloutRequest(0, tuple(GroupRequest(update, a, 0, start, 2, 0) for a in (first, first + 1)), 0, 1.0)
        for update in (0, 1)
        for first in (0, 2)
    ]
    requests += [requests[0].alone(0), requests[0].alone(1)]
    paths = [spool_path(tmp_path, request) for request in requests]
    assert len(set(paths)) == len(paths)
    for path in paths:
        save_trajectories(path, make_trajectories())
    remove_spooled(tmp_path, before_update=1)
    assert sorted(tmp_path.rglob("*.safetensors")) == sorted(path for path in paths if "update-000001" in str(path))


@pytest.mark.parametrize(
    ("arrays", "about"),
    [
        ({"images.main": np.zeros((3, 2, 8, 8, 3), np.uint8)}, {}),
        ({"actions": np.zeros((4, 1, 4, 3), np.float32)}, {}),
        ({"record.tokens": np.zeros((4, 2, 12), np.float64)}, {}),
        ({"record.tokens": np.zeros(4, np.int64)}, {}),
        ({"behavior_logprobs": np.zeros((4, 2, 1, 11), np.float32)}, {}),
        ({"images.main": np.zeros((4, 2, 8, 8), np.uint8)}, {}),
        ({"images.third": np.zeros((4, 2, 8, 8, 3), np.uint8)}, {}),
        ({"more": np.zeros(1)}, {}),
        ({"actions": None}, {}),
        ({"record.tokens": None, "record.noise": None}, {}),
        ({}, {"cameras": ["main"]}),
        ({}, {"cameras": []}),
        ({}, {"instructions": ["go"]}),
        ({}, {"version": "7"}),
        ({}, {"version": -1}),
        ({}, {"surprise": 1}),
        ({}, None),
    ],
)
def test_a_file_that_is_not_what_we_write_is_refused(tmp_path, arrays, about):
    data, path = make_trajectories(), tmp_path / "a.safetensors"
    facts = {"instructions": data.instructions, "version": 7, "cameras": list(data.images)}
    content = {name: values for name, values in (entries(data) | arrays).items() if values is not None}
    save_file(content, path, metadata=None if about is None else {"about": json.dumps(facts | about)})
    with pytest.raises(SpoolError, match=r"a\.safetensors"):
        load_trajectories(path, sha256_of(path))
