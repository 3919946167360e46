"""Damaged, foreign and hostile trajectory files are refused by name, before memory is taken for what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert_refused(tmp_path / "a", f"needs {needed} bytes", max_bytes=needed - 1)
    assert len(load_episodes(tmp_path / "a", max_bytes=needed)) == 7
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
        {"format": 4},
        {"format": 0},
        {"format": 1},
        {"format": 2},
        {"format": 2, "block_frames": 0},
        {"block_frames": 0},
        {"block_frames": 1},
        {"block_frames": -1},
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
        {"has_corrections": True},
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
        {"frame_blocks": [b"", b"", b""]},
        {"frame_blocks": [b"\0" * 8] * 3},
        {"frame_blocks": [b"\xff" * 8] * 3},
        {"frame_blocks": [b"\1" * 16] * 3},
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


def test_a_stream_that_holds_more_than_its_episode_is_refused_before_it_is_decoded(tmp_path):
    bomb = pa.compress(bytes(2**28), "zstd", asbytes=True)
    ends = np.array([len(bomb)], "<i8").tobytes()
    assert_refused(rewritten(tmp_path / "a", columns={"frames": [bomb] * 3, "frame_blocks": [ends] * 3}), "damaged")


def over_which_arrow_ends_the_process(path: Path) -> Path:
    """A file whose column `frames` had no histogram of nulls if it were what it says it is: it was written as nullable."""
    save_episodes(path, make())
    table = pq.read_table(path)
    schema = pa.schema([field.with_nullable(field.name == "frames") for field in table.schema], table.schema.metadata)
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), path)
    optional, required = (b"\x25" + kind + b"\x18\x06frames" for kind in (b"\2", b"\0"))
    content = path.read_bytes()
    assert content.count(optional) == 1
    path.write_bytes(content.replace(optional, required))
    return path


def test_metadata_over_which_arrow_would_end_the_process_are_an_error(tmp_path):
    path = over_which_arrow_ends_the_process(tmp_path / "a")
    if child("import pyarrow.parquet as pq; pq.read_metadata(path).row_group(0).column(0)", path).returncode == 0:
        pytest.skip("this version of Arrow does not look at histograms")
    for code in (
        "from wmpo_ray.data.store import load_episodes; load_episodes(path)",
        "from wmpo_ray.data.store import load_frames; load_frames(path, 0)",
    ):
        done = child(code, path)
        assert done.returncode == 1 and f"UserError: {path} is damaged or no trajectory file" in done.stderr
    done = child("from wmpo_ray.data.file_facts import problems_of; print(problems_of(path))", path)
    assert done.returncode == 0 and f"{path} is damaged or no trajectory file" in done.stdout


def child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import pathlib, sys; path = pathlib.Path(sys.argv[1]); {code}", path]
    return subprocess.run(command, check=False, capture_output=True, text=True)
