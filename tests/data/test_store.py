import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stored_episodes import assert_same, make
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data import store as trajectory_store
from wmpo_ray.data import stored_frames
from wmpo_ray.data.store import StoredFrames, episode_writer, load_episodes, load_frames, save_episodes
from wmpo_ray.data.store_format import METADATA_KEY, header_of


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
    if data.draw(st.booleans()):
        shape = episodes.actions.shape[:2]
        episodes = replace(episodes, corrections=np.random.default_rng(0).random(shape) < 0.5)
    save_episodes(path, episodes)
    assert_same(load_episodes(path), episodes)


def test_episodes_spread_over_several_row_groups(tmp_path, monkeypatch):
    """Each holds as many as fit; how the episodes came makes no difference to the file."""
    episodes = replace(make(num=7), lengths=np.array([4, 0, 1, 2, 4, 4, 0]))
    monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", 5 * episodes.frames[0, 0].nbytes)
    save_episodes(tmp_path / "a", episodes)
    assert group_sizes(tmp_path / "a") == [1, 2, 1, 1, 1, 1]
    with episode_writer(tmp_path / "b") as writer:
        for rows in (slice(0, 3), slice(3, 3), slice(3, 7)):
            writer.append(episodes.rows(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_episodes(tmp_path / "a")
    for i, length in enumerate(episodes.lengths):
        shown = np.minimum(np.arange(5), length)
        assert np.array_equal(loaded.frames[i], episodes.frames[i, shown]), "the last real frame repeats"


def group_sizes(path: Path) -> list[int]:
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def test_any_parquet_reader_finds_one_row_per_episode_compressed_with_zstd(tmp_path):
    episodes = make()
    save_episodes(tmp_path / "a", episodes)
    table = pq.read_table(tmp_path / "a")
    assert table["instruction"].to_pylist() == list(episodes.instructions)
    assert table["failure.jam"].to_pylist() == episodes.failures["jam"].tolist()
    video = episodes.frames[1, : episodes.lengths[1] + 1]
    assert pa.decompress(table["frames"][1].as_py(), video.nbytes, "zstd").to_pybytes() == video.tobytes()
    assert table["first_frame"][1].as_py() == episodes.frames[1, 0].tobytes()
    group = pq.ParquetFile(tmp_path / "a").metadata.row_group(0)
    assert [group.column(i).compression for i in range(3)] == ["UNCOMPRESSED", "ZSTD", "ZSTD"], "frames only once"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("frames", np.zeros((3, 5, 5, 6, 4), np.uint8), "frames"),
        ("frames", np.zeros((3, 5, 5, 6, 3), np.float32), "frames"),
        ("actions", np.zeros((3, 5, 2), np.float32), "actions"),
        ("actions", np.zeros((3, 4, 2), np.float64), "actions"),
        ("lengths", np.zeros(2, np.int64), "lengths"),
        ("lengths", np.array([0, 5, 1]), "lengths are 0..5"),
        ("lengths", np.array([0, -1, 1]), "lengths are -1..1"),
        ("success", np.zeros(3, np.int64), "success"),
        ("seeds", np.zeros(3, np.float64), "seeds"),
        ("instructions", ("a",), "1 instructions for 3"),
        ("failures", {"jam": np.zeros(2, bool)}, "jam"),
        ("corrections", np.zeros((3, 5), bool), "corrections"),
        ("corrections", np.zeros((3, 4), np.uint8), "corrections"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        save_episodes(tmp_path / "a", Episodes(**{**vars(make()), field: value}))
    assert not list(tmp_path.iterdir())


def test_episodes_of_another_shape_cannot_be_appended(tmp_path):
    with pytest.raises(ValueError, match="do not fit those before"), episode_writer(tmp_path / "a") as writer:
        writer.append(make())
        writer.append(make(horizon=5))
    with pytest.raises(ValueError, match="no episodes"), episode_writer(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_writing_that_is_interrupted_leaves_the_old_episodes(tmp_path, monkeypatch, interruption):
    monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", 1)
    save_episodes(tmp_path / "a", make(seed=1))
    with pytest.raises(interruption), episode_writer(tmp_path / "a") as writer:
        writer.append(make(seed=2))
        raise interruption
    assert_same(load_episodes(tmp_path / "a"), make(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_episodes(tmp_path, monkeypatch):
    save_episodes(tmp_path / "a", make(seed=1))

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full"):
        patch.setattr(os, "fsync", full)
        save_episodes(tmp_path / "a", make(seed=2))
    assert_same(load_episodes(tmp_path / "a"), make(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def in_groups(tmp_path, monkeypatch) -> tuple[Path, Episodes]:
    """A file of 7 episodes in row groups of 3, and the same episodes in memory."""
    episodes = replace(make(7), lengths=np.array([4, 4, 4, 2, 4, 4, 0]))
    episodes = replace(episodes, frames=episodes.frames[np.arange(7)[:, None], padded_steps(episodes.lengths, 4)])
    monkeypatch.setattr(trajectory_store, "ROW_GROUP_BYTES", 15 * episodes.frames[0, 0].nbytes)
    save_episodes(tmp_path / "a", episodes)
    assert group_sizes(tmp_path / "a") == [3, 4] or group_sizes(tmp_path / "a") == [3, 3, 1]
    return tmp_path / "a", episodes


def padded_steps(lengths: np.ndarray, horizon: int) -> np.ndarray:
    return np.minimum(np.arange(horizon + 1), lengths[:, None])


def groups_read(monkeypatch) -> list[tuple[int, tuple[str, ...]]]:
    """(row group, columns) of everything that is read from now on."""
    read, real = [], pq.ParquetFile.read_row_group

    def counted(file, i, columns):
        read.append((int(i), tuple(columns)))
        return real(file, i, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return read


def test_frames_are_read_when_they_are_indexed_and_first_frames_alone(in_groups, monkeypatch):
    path, episodes = in_groups
    read = groups_read(monkeypatch)
    loaded = load_episodes(path)
    assert not any({"frames", "first_frame"} & set(columns) for _, columns in read)
    read.clear()
    last = loaded.rows(slice(-1, None))
    assert not read and np.array_equal(last.frames[:, 0], episodes.frames[-1:, 0])
    assert [columns for _, columns in read] == [("first_frame",)]
    read.clear()
    assert np.array_equal(loaded.frames[[0, 2, 0], [1, 3, 4]], episodes.frames[[0, 2, 0], [1, 3, 4]])
    assert [group for group, _ in read] == [0], "each row group once"


@pytest.mark.parametrize(("cache_bytes", "num_reads"), [(0, 4), (10**6, 2)])
def test_row_groups_of_earlier_formats_are_kept_up_to_a_number_of_bytes(in_groups, monkeypatch, cache_bytes, num_reads):
    path, episodes = in_groups
    save_format(2, path, episodes, row_group_size=4)
    frames = load_episodes(path, cache_bytes=cache_bytes).frames
    read = groups_read(monkeypatch)
    for row in (0, 5, 1, 4):
        assert np.array_equal(frames[row], episodes.frames[row])
    assert len(read) == num_reads


def long_episodes(num: int = 3, length: int = 40) -> Episodes:
    episodes = make(num, horizon=length)
    frames = np.random.default_rng(0).integers(0, 256, episodes.frames.shape, np.uint8)
    return replace(episodes, frames=frames, lengths=np.full(num, length))


def blocks_decoded(monkeypatch) -> list[int]:
    """Frames of each block that is decoded from now on."""
    decoded, real = [], stored_frames.decode
    monkeypatch.setattr(stored_frames, "decode", lambda block, n, shape: decoded.append(n) or real(block, n, shape))
    return decoded


@pytest.mark.parametrize(("cache_bytes", "again"), [(0, 2), (10**6, 0)])
def test_a_window_decodes_the_blocks_that_it_lies_in_and_no_more(tmp_path, monkeypatch, cache_bytes, again):
    episodes = long_episodes()
    save_episodes(tmp_path / "a", episodes)
    frames = load_episodes(tmp_path / "a", cache_bytes=cache_bytes).frames
    read, decoded = groups_read(monkeypatch), blocks_decoded(monkeypatch)
    for first, blocks in ((0, [16]), (4, []), (26, [16, 9])):
        assert np.array_equal(frames[1, first : first + 12], episodes.frames[1, first : first + 12])
        assert decoded == blocks, first
        decoded.clear()
    windows = np.array([[0], [2]]), np.array([[30], [29]]) + np.arange(4)
    assert np.array_equal(frames[windows], episodes.frames[windows]) and len(decoded) == 4
    decoded.clear()
    assert np.array_equal(frames[0, 30:34], episodes.frames[0, 30:34]) and len(decoded) == again
    assert len(read) == 1, "the row group as a whole only to compare its checksum and find its blocks"


def test_a_file_that_another_program_wrote_again_is_read_by_row_groups(tmp_path, monkeypatch):
    episodes = long_episodes()
    save_episodes(tmp_path / "a", episodes)
    for options in (
        {},
        {"compression": "none"},
        {"compression": "none", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 1},
    ):
        pq.write_table(pq.read_table(tmp_path / "a"), tmp_path / "b", row_group_size=2, **options)
        assert_same(load_episodes(tmp_path / "b", cache_bytes=0), episodes)
    decoded = blocks_decoded(monkeypatch)
    assert np.array_equal(load_episodes(tmp_path / "b").frames[1, 20:25], episodes.frames[1, 20:25]) and not decoded


def test_a_copy_in_another_process_reads_the_same_file_there(in_groups):
    path, episodes = in_groups
    loaded = load_episodes(path)
    np.asarray(loaded.frames)
    content = pickle.dumps(loaded.rows(slice(2, 5)))
    assert episodes.frames[2, 0].tobytes() not in content
    assert_same(pickle.loads(content), episodes.rows(slice(2, 5)))


def test_another_file_in_the_place_of_the_one_that_was_opened(in_groups):
    path, episodes = in_groups
    begun, waiting = load_episodes(path), load_episodes(path)
    first = begun.frames[0]
    save_episodes(path, make(6, seed=9))
    assert np.array_equal(begun.frames[0], first) and np.array_equal(begun.frames[4], episodes.frames[4])
    with pytest.raises(UserError, match="another file than when it was opened"):
        waiting.frames[0]


def test_a_row_group_can_be_read_alone(in_groups):
    path, episodes = in_groups
    frames = load_episodes(path).frames
    assert isinstance(frames, StoredFrames)
    tables = [load_frames(path, group) for group in range(len(frames.group_sizes))]
    assert tuple(map(len, tables)) == frames.group_sizes
    videos = [value.as_py() for table in tables for value in table["frames"]]
    real = [video[: n + 1].tobytes() for video, n in zip(episodes.frames, episodes.lengths, strict=True)]
    assert videos == real


def save_format(number: int, path: Path, episodes: Episodes, row_group_size: int = 2) -> None:
    """As versions before wrote it: frames as they are, of format 1 padded and without the first frame beside them."""
    header = header_of(episodes).model_copy(update={"format": number, "block_frames": 0})
    videos = [
        video[: n + 1] if number == 2 else video for video, n in zip(episodes.frames, episodes.lengths, strict=True)
    ]
    columns = [
        [video.tobytes() for video in videos],
        *([[video[0].tobytes() for video in videos]] if number == 2 else []),
        [actions.tobytes() for actions in episodes.actions],
        episodes.lengths,
        episodes.success,
        list(episodes.instructions),
        episodes.seeds,
        *episodes.failures.values(),
    ]
    text = header.model_dump_json(exclude={"block_frames"})
    schema = header.arrow_schema().with_metadata({METADATA_KEY: text.encode()})
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=row_group_size)


@pytest.mark.parametrize("number", [1, 2])
def test_files_of_earlier_formats_are_read_and_written_again_as_today(tmp_path, number):
    episodes = make(5)
    save_format(number, tmp_path / "old", episodes)
    loaded = load_episodes(tmp_path / "old")
    assert_same(loaded, episodes)
    assert np.array_equal(loaded.frames[:, 0], episodes.frames[:, 0])
    assert sum(map(len, (load_frames(tmp_path / "old", group) for group in range(3)))) == 5
    save_episodes(tmp_path / "new", loaded)
    save_episodes(tmp_path / "expected", episodes)
    assert (tmp_path / "new").read_bytes() == (tmp_path / "expected").read_bytes()
