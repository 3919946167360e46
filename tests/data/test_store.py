import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data import store as trajectory_store
from wmpo_ray.data.store import (
    load_episodes,
    load_frames,
    load_index,
    load_last_episodes,
    save_episodes,
)


def make(num=3, horizon=4, size=(5, 6), action_dims=2, failures=("drop", "jam"), seed=0, instructions=None) -> Episodes:
    random = np.random.default_rng(seed)
    actions = random.standard_normal((num, horizon, action_dims)).astype(np.float32)
    if actions.size:
        actions.flat[0] = np.nan
    return Episodes(
        random.integers(0, 256, (num, horizon + 1, *size, 3), np.uint8),
        actions,
        random.integers(0, horizon + 1, num),
        random.random(num) < 0.5,
        tuple(instructions or [f"put it in pocket {i}" for i in range(num)]),
        random.integers(-(2**63), 2**63 - 1, num),
        {name: random.random(num) < 0.5 for name in failures},
    )


def assert_same(a: Episodes, b: Episodes) -> None:
    assert a.instructions == b.instructions and list(a.failures) == list(b.failures)
    arrays = ("frames", "actions", "lengths", "success", "seeds")
    pairs = [(getattr(a, name), getattr(b, name)) for name in arrays]
    for x, y in pairs + [(a.failures[name], b.failures[name]) for name in a.failures]:
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_episodes_come_back_bit_for_bit(tmp_path_factory, data):
    num = data.draw(st.integers(0, 4))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    episodes = make(
        num,
        horizon=data.draw(st.integers(0, 3)),
        size=data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        action_dims=data.draw(st.integers(1, 3)),
        failures=data.draw(st.lists(text, unique=True, max_size=3)),
        instructions=data.draw(st.lists(text, min_size=num, max_size=num)),
        seed=data.draw(st.integers(0, 99)),
    )
    path = tmp_path_factory.mktemp("store") / "episodes.parquet"
    save_episodes(path, episodes)
    assert_same(load_episodes(path), episodes)


def test_episodes_spread_over_several_row_groups(tmp_path, monkeypatch):
    episodes = make(num=7)
    monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", 2 * episodes.frames[0].nbytes)
    save_episodes(tmp_path / "a", episodes)
    assert pq.ParquetFile(tmp_path / "a").metadata.num_row_groups == 4
    assert_same(load_episodes(tmp_path / "a"), episodes)


def test_any_parquet_reader_finds_one_row_per_episode_compressed_with_zstd(tmp_path):
    episodes = make()
    save_episodes(tmp_path / "a", episodes)
    table = pq.read_table(tmp_path / "a")
    assert table["instruction"].to_pylist() == list(episodes.instructions)
    assert table["failure.jam"].to_pylist() == episodes.failures["jam"].tolist()
    assert table["frames"][1].as_py() == episodes.frames[1].tobytes()
    assert pq.ParquetFile(tmp_path / "a").metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("frames", np.zeros((3, 5, 5, 6, 4), np.uint8), "frames"),
        ("frames", np.zeros((3, 5, 5, 6, 3), np.float32), "frames"),
        ("actions", np.zeros((3, 5, 2), np.float32), "actions"),
        ("actions", np.zeros((3, 4, 2), np.float64), "actions"),
        ("lengths", np.zeros(2, np.int64), "lengths"),
        ("success", np.zeros(3, np.int64), "success"),
        ("seeds", np.zeros(3, np.float64), "seeds"),
        ("instructions", ("a",), "1 instructions for 3"),
        ("failures", {"jam": np.zeros(2, bool)}, "jam"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        save_episodes(tmp_path / "a", Episodes(**{**vars(make()), field: value}))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_episodes(tmp_path, monkeypatch):
    save_episodes(tmp_path / "a", make(seed=1))

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full"):
        patch.setattr(os, "fsync", full)
        save_episodes(tmp_path / "a", make(seed=2))
    assert_same(load_episodes(tmp_path / "a"), make(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# -- damaged, foreign and hostile files ---------------------------------------------------------------------------


def assert_refused(path: Path, match: str | None = None, **options) -> None:
    with pytest.raises(UserError, match=match) as raised:
        load_episodes(path, **options)
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


def test_more_than_max_bytes_is_not_loaded(tmp_path):
    episodes = make()
    save_episodes(tmp_path / "a", episodes)
    total = episodes.frames.nbytes + episodes.actions.nbytes
    assert_refused(tmp_path / "a", f"max_bytes={total - 1}", max_bytes=total - 1)
    assert_same(load_episodes(tmp_path / "a", max_bytes=total), episodes)


@pytest.fixture
def in_groups(tmp_path, monkeypatch) -> tuple[Path, Episodes]:
    """A file of 7 episodes in row groups of 3."""
    episodes = make(7)
    monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", 3 * episodes.frames[0].nbytes)
    save_episodes(tmp_path / "a", episodes)
    return tmp_path / "a", episodes


def test_a_file_can_be_read_without_its_frames_and_they_a_group_at_a_time(in_groups):
    path, episodes = in_groups
    index, sizes = load_index(path)
    assert sizes == (3, 3, 1) and index.frames.shape == episodes.frames.shape and index.frames.strides == (0,) * 5
    assert_same(replace(index, frames=episodes.frames), episodes)
    tables = [load_frames(path, group) for group in range(3)]
    assert [len(table) for table in tables] == [3, 3, 1]
    videos = [value.as_py() for table in tables for value in table["frames"]]
    assert b"".join(videos) == episodes.frames.tobytes()


@pytest.mark.parametrize("count", [1, 2, 4, 7, 9])
def test_the_last_episodes_are_read_alone(in_groups, count):
    path, episodes = in_groups
    last = load_last_episodes(path, count)
    assert_same(last, episodes.rows(slice(max(0, 7 - count), None)))
    groups = {1: 1, 2: 4, 4: 4}.get(count, 7)
    read = groups * (episodes.frames[0].nbytes + episodes.actions[0].nbytes)
    assert_same(load_last_episodes(path, count, max_bytes=read), last)
    with pytest.raises(UserError, match=f"max_bytes={read - 1}"):
        load_last_episodes(path, count, max_bytes=read - 1)


def test_every_way_to_read_refuses_what_is_damaged(in_groups):
    path, _ = in_groups
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    # The frames are most of a file, so it is in them.
    with pytest.raises(UserError, match="damaged"):
        [load_frames(path, group) for group in range(3)]
    path.unlink()
    for load in (load_index, lambda path: load_frames(path, 0), lambda path: load_last_episodes(path, 1)):
        with pytest.raises(UserError, match="missing"):
            load(path)


def rewritten(path: Path, header: dict | None = None, columns: dict | None = None) -> Path:
    """A copy of a good file with some header fields or columns replaced."""
    save_episodes(path, make())
    table = pq.read_table(path)
    text = trajectory_store._Header.model_validate_json(table.schema.metadata[b"wmpo_ray"]).model_dump()
    for name, values in (columns or {}).items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    metadata = {b"wmpo_ray": json.dumps({**text, **(header or {})}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"format": 2},
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
        {"actions": [b"\0" * 32, b"\0" * 33, b"\0" * 32]},
        {"frames": [b"\0" * 10**6] * 3},
        {"actions": [b"\0" * 10**6] * 3},
        {"instruction": ["a" * 10**6, "b", "c"]},
    ],
)
def test_rows_of_the_wrong_size_are_refused(tmp_path, columns):
    assert_refused(rewritten(tmp_path / "a", columns=columns), "damaged")
