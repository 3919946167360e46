"""Archives of arrays: what numpy wrote comes back, and a hostile one is refused before it is unpacked."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest

from tests.support.hostile_files import npy, pack, refusal
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import load_npy, load_npz


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array("text"),
        np.array(True),
        np.zeros((0, 3), np.uint8),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_comes_back_as_numpy_reads_it(tmp_path, array, save):
    save(tmp_path / "a.npz", a=array, b=np.zeros(3))
    read = load_npz(tmp_path / "a.npz", ("a",), 4096)["a"]
    with np.load(tmp_path / "a.npz") as archive:
        expected = archive["a"]
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape) and np.array_equal(read, expected)
    assert read.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}", b"\0" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b""),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"\0" * 8),
        npy("{'descr': '<U1000000000', 'fortran_order': False, 'shape': ()}", b"\0" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 9),
        npy("__import__('os').system('true')", b""),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 8, b"\3\0"),
        npy("(" * 9000, b""),
        b"",
    ],
)
def test_an_array_that_is_not_what_it_claims_is_refused(tmp_path, content):
    path = pack(tmp_path / "a.npz", a=content)
    assert str(path) in refusal(lambda: load_npz(path, ("a",), 10**6))


def test_an_archive_that_unpacks_to_more_than_its_bound_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**24, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**16
    message = refusal(lambda: load_npz(tmp_path / "bomb.npz", ("a",), 2**20))
    assert "unpacks to 16777" in message and str(2**20) in message


def test_a_flipped_bit_a_cut_and_a_missing_or_doubled_array_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100))
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.npz").write_bytes(content[:-30])
    content[300] ^= 4
    (tmp_path / "flipped.npz").write_bytes(content)
    for name in ("cut.npz", "flipped.npz"):
        assert name in refusal(lambda name=name: load_npz(tmp_path / name, ("a",), 10**6))
    assert "0 arrays named 'b'" in refusal(lambda: load_npz(path, ("b",), 10**6))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 8))
    assert "2 arrays named 'a'" in refusal(lambda: load_npz(path, ("a",), 10**6))


def test_a_file_of_one_array_comes_back_or_is_named(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(6.0).reshape(2, 3)
    np.save(path, array)
    assert np.array_equal(load_npy(path), array)
    with pytest.raises(UserError, match="more than the 16 that are read"):
        load_npy(path, 16)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="a.npy claims to be float64"):
        load_npy(path)
    np.save(path, np.array([{}], object))
    with pytest.raises(UserError, match="only numbers, booleans and text"):
        load_npy(path)
    with pytest.raises(UserError, match="missing"):
        load_npy(tmp_path / "b.npy")
