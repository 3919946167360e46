"""Damaged, foreign and hostile trajectory files are refused by name, before memory is taken for what they claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.stored_episodes import assert_same, make
from wmpo_ray.core.errors import UserError
from wmpo_ray.data import store as trajectory_store
from wmpo_ray.data.store import load_episodes, load_frames, save_episodes
from wmpo_ray.data.store_format import Header


def assert_refused(path: Path, match: str | None = None, **options) -> None:
    with pytest.raises(UserError, match=match) as raised:
        np.asarray(load_episodes(path, **options).frames)
    assert str(path) in str(raised.value)


def test_a_truncated_file_is_named_wherever_it_ends(tmp_path):
    save_episodes(tmp_path / "a", make())
    content = (tmp_path / "a").read_bytes()
    for stop in range(0, len(content), 97):
        (tmp_path / "cut").write_bytes(content[:stop])
        assert_refused(tmp_path / "cut")
    assert_refused(tmp_path / "none", "is missing")


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path):
    save_episodes(tmp_path / "a", make())
    content = bytearray((tmp_path / "a").read_bytes())
    column = pq.ParquetFile(tmp_path / "a").metadata.row_group(0).column(0)
    end = column.data_page_offset + column.total_compressed_size
    for at in range(end - 600, end, 50):
        flipped = content.copy()
        flipped[at] ^= 16
        (tmp_path / "b").write_bytes(flipped)
        assert_refused(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello world, this is a text file", b"\x80\x04\x95pickle"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert_refused(tmp_path / "a", "no trajectory file")


def test_a_parquet_file_of_somebody_else_is_named(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a")
    assert_refused(tmp_path / "a", "no trajectory file of this program")


def test_a_file_that_needs_more_than_max_bytes_at_once_is_not_loaded(tmp_path, monkeypatch):
    episodes = replace(make(7), lengths=np.full(7, 4))
    for groups_of, name in ((7, "a"), (1, "b")):
        monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", groups_of * episodes.frames[0].nbytes)
        save_episodes(tmp_path / name, episodes)
    needed = 7 * episodes.frames[0].nbytes + episodes.actions.nbytes
    assert_refused(tmp_path / "a", f"max_bytes={needed}", max_bytes=needed)  # and some bytes of headers
    assert len(load_episodes(tmp_path / "a", max_bytes=needed + 1024)) == 7
    assert_same(load_episodes(tmp_path / "b", max_bytes=needed // 2), episodes)


def test_every_way_to_read_refuses_what_is_damaged(tmp_path):
    path = tmp_path / "a"
    save_episodes(path, make())
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # among the frames of the first row group
    path.write_bytes(bytes(content))
    for read in (lambda: load_frames(path, 0), lambda: load_episodes(path).frames[0]):
        with pytest.raises(UserError, match="damaged"):
            read()
    path.unlink()
    for load in (load_episodes, lambda path: load_frames(path, 0)):
        with pytest.raises(UserError, match="missing"):
            load(path)


def rewritten(path: Path, header: dict | None = None, columns: dict | None = None) -> Path:
    """A copy of a good file with some header fields or columns replaced."""
    save_episodes(path, make())
    table = pq.read_table(path)
    text = Header.model_validate_json(table.schema.metadata[b"wmpo_ray"]).model_dump()
    for name, values in (columns or {}).items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    metadata = {b"wmpo_ray": json.dumps({**text, **(header or {})}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"format": 3},
        {"format": 0},
        {"format": 1},
        {"format": "1"},
        {"horizon": -1},
        {"horizon": 10**15},
        {"height": 0},
        {"height": 6, "width": 6},
        {"channels": 4},
        {"frames_dtype": "object"},
        {"actions_dtype": "O"},
        {"action_dims": 3},
        {"failures": ["jam"]},
        {"failures": None},
        {"surprise": 1},
    ],
)
def test_a_header_that_does_not_tell_of_the_rows_is_refused(tmp_path, header):
    assert_refused(rewritten(tmp_path / "a", header))


@pytest.mark.parametrize(
    "columns",
    [
        {"length": [0, 5, 1]},
        {"length": [0, -1, 1]},
        {"frames": [b"", b"", b""]},
        {"first_frame": [b"", b"", b""]},
        {"first_frame": [b"\0" * 90] * 3},
        {"actions": [b"\0" * 32, b"\0" * 33, b"\0" * 32]},
        {"frames": [b"\0" * 10**6] * 3},
        {"actions": [b"\0" * 10**6] * 3},
        {"instruction": ["a" * 10**6, "b", "c"]},
    ],
)
def test_rows_of_the_wrong_size_are_refused(tmp_path, columns):
    assert_refused(rewritten(tmp_path / "a", columns=columns), "damaged")
