"""Files of torch.save: the tensors that torch would read, and nothing that claims or asks for more."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from wmpo_ray.core.errors import UserError
from wmpo_ray.model_files.pickled_tensors import open_pickled


# Protocol 2, as torch.save writes it: {"a": tensor of a float storage "0" of `claimed` elements}.
def listed(claimed: int, shape: bytes, stride: bytes, name: bytes = b"torch._utils\n_rebuild_tensor_v2\n") -> bytes:
    count = b"\x8a\x08" + struct.pack("<q", claimed)
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + count + b"tQ"
    return b"\x80\x02}(X\x01\0\0\0ac" + name + b"(" + storage + b"K\0" + shape + stride + b"\x89}tRu."


def archive(path: Path, data: bytes, storage: bytes = b"\0" * 16, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/data/0", storage)
        file.writestr("a/version", "3\n")
    return path


HUGE = b"\x8a\x08" + struct.pack("<q", 10**15)
FOUR = b"K\x04\x85"


def test_a_list_by_hand_is_read_as_torch_would(tmp_path):
    path = archive(tmp_path / "a.pt", listed(4, FOUR, b"K\x01\x85"), struct.pack("<4f", 1, 2, 3, 4))
    tensors = open_pickled(path).tensors
    assert tensors["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "data",
    [
        listed(10**15, HUGE + b"\x85", b"K\x01\x85"),  # a storage beyond the file
        listed(4, HUGE + b"\x85", b"K\x01\x85"),  # a tensor beyond its storage
        listed(4, HUGE + b"\x85", b"K\0\x85"),  # one element, seen 10^15 times
        listed(4, FOUR, b"K\x02\x85"),  # a stride beyond the storage
        listed(4, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),  # a negative size
        listed(4, FOUR, b"K\x01\x85", b"builtins\nbytearray\n"),
        listed(4, FOUR, b"K\x01\x85", b"posix\nsystem\n"),
        listed(4, FOUR, b"K\x01\x85", b"collections\nOrderedDict\n"),
        listed(4, FOUR, b"K\x01\x85")[:-5],
        b"\x80\x02r\xff\xff\xff\x7f.",  # a place in the memo that would take gigabytes
        b"\x80\x02(((((.",
        b"\x80\x02}.",
        b"\x80\x02N.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60),
        b"",
    ],
)
def test_a_list_that_claims_more_than_there_is_or_asks_for_more_than_tensors_is_refused(tmp_path, data):
    path = archive(tmp_path / "a.pt", data)
    with pytest.raises(UserError, match=r"a\.pt"):
        open_pickled(path)


def test_an_archive_that_torch_would_not_write_is_refused(tmp_path):
    good = listed(4, FOUR, b"K\x01\x85")
    archive(tmp_path / "packed.pt", good, compression=zipfile.ZIP_DEFLATED)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(archive(tmp_path / "twice.pt", good), "a") as file,
    ):
        file.writestr("a/data/0", b"\0" * 16)
    whole = archive(tmp_path / "whole.pt", good).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "folder.pt").mkdir()
    for name in ("packed", "twice", "cut", "text", "folder", "absent"):
        with pytest.raises(UserError, match=f"{name}.pt"):
            open_pickled(tmp_path / f"{name}.pt")
    assert set(open_pickled(tmp_path / "whole.pt").tensors) == {"a"}


def test_what_torch_saves_is_what_is_read(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    state = network.state_dict()
    state |= {"transposed": torch.arange(12.0).view(3, 4).T, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    state["tied"] = state["transposed"]
    torch.save(state, tmp_path / "a.pt")
    assert open_pickled(tmp_path / "a.pt").tensors.keys() == state.keys()
    tensors = open_pickled(tmp_path / "a.pt").tensors
    assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in state.items())
