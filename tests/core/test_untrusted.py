"""A hostile or damaged file ends in one line that names it, before memory is taken for what it claims."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from tests.support.hostile_files import refusal
from wmpo_ray.core.untrusted import inside, parse_json, read_bytes, read_json, read_lines, tensor_specs


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**5])
def test_json_that_is_none_names_the_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    assert str(tmp_path / "a.json") in refusal(lambda: read_json(tmp_path / "a.json"))


def test_a_file_larger_than_its_bound_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    message = refusal(lambda: read_json(path))
    assert str(2**40) in message and str(256 * 2**20) in message
    refusal(lambda: list(read_lines(path)))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        assert "no regular file" in refusal(lambda path=path: read_bytes(path, 100))
    assert "is missing" in refusal(lambda: read_bytes(tmp_path / "none", 100))


def test_lines_come_one_at_a_time_and_none_is_endless(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo\n" + b"3" * 50)
    assert list(read_lines(tmp_path / "a", max_line_bytes=50)) == [b"one\n", b"two\n", b"3" * 50]
    assert "line 3" in refusal(lambda: list(read_lines(tmp_path / "a", max_line_bytes=49)))


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "..\\x", "C:\\x", "s3://bucket/x", "a\0b", "x/.."],
)
def test_a_name_never_leads_out_of_its_folder(name):
    message = refusal(lambda: inside(Path("/runs/a"), name, "/runs/a/index.json"))
    assert "/runs/a/index.json names" in message and "inside /runs/a" in message


@pytest.mark.parametrize("name", ["a", "a.safetensors", "model-00001-of-00002.safetensors", "sub/a", "..a", "ö"])
def test_a_plain_name_is_a_path_in_the_folder(name):
    assert inside(Path("/runs/a"), name, "index") == Path("/runs/a") / name


def test_the_place_of_bad_json_is_named():
    assert parse_json(b'{"a": 1}', "here") == {"a": 1}
    assert refusal(lambda: parse_json("{", "here")).startswith("here is damaged")


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        pickle.dumps({"a": 1}),
    ],
)
def test_a_header_that_the_file_cannot_hold_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "a.safetensors" in refusal(lambda: tensor_specs(tmp_path / "a.safetensors"))


def test_no_source_file_unpickles():
    """`pickle.load` and object arrays are nowhere; a cloudpickle crosses processes, never a file.

    `torch.load` stands in the one place that restricts it to tensors.
    """
    root = Path(__file__).parents[2]
    forbidden = ("torch.load(", "pickle.load(", "pickle.loads(", "allow_pickle=True", "joblib", "np.load(")
    for room in ("wmpo_ray", "actors", "learners", "cluster"):
        for path in (root / room).rglob("*.py"):
            text = path.read_text().replace("cloudpickle.loads(", "")
            if path.name == "pickled_tensors.py":
                text = text.replace("torch.load(", "", 1)
            assert not [word for word in forbidden if word in text], path
