"""Episodes that are read as they are indexed are those in memory, wherever they lie, and take no more than is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo_ray.core.types import Episodes
from wmpo_ray.data import store
from wmpo_ray.data.episodes import (
    JoinedFrames,
    RaggedFrames,
    as_lazy,
    batch_within,
    concatenate_episodes,
    parts_of,
)
from wmpo_ray.data.store import load_episodes, save_episodes
from wmpo_ray.data.windows import WindowSampler

M, T, SIZE = 9, 6, (2, 3)


def padded(seed: int = 0, num: int = M) -> Episodes:
    """Episodes in one array, of lengths from 0 to T."""
    random = np.random.default_rng(seed)
    lengths = random.permutation(np.arange(num) % (T + 1))
    frames = random.integers(0, 256, (num, T + 1, *SIZE, 3), np.uint8)
    frames = frames[np.arange(num)[:, None], np.minimum(np.arange(T + 1), lengths[:, None])]
    actions = random.standard_normal((num, T, 2)).astype(np.float32)
    return Episodes(frames, actions, lengths, lengths < T, tuple("abcdefghi"[:num]), np.arange(num))


def ragged(episodes: Episodes) -> RaggedFrames:
    videos = [video[: n + 1] for video, n in zip(episodes.frames, episodes.lengths, strict=True)]
    return RaggedFrames(videos, T, (*SIZE, 3))


def stored(episodes: Episodes, folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "ROW_GROUP_BYTES", 8 * episodes.frames[0, 0].nbytes)
        save_episodes(folder / "a", episodes)
    return load_episodes(folder / "a", cache_bytes=200).frames


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, object]:
    """The frames of `padded()` in every place where frames can be."""
    episodes = padded()
    order = np.random.default_rng(1).permutation(M)
    back = np.argsort(order)
    frames = stored(episodes, tmp_path_factory.mktemp("store"))
    return {
        "ragged": ragged(episodes),
        "stored": frames,
        "selected": frames.select(order).select(back),
        "joined": JoinedFrames([as_lazy(episodes.rows(slice(4))), frames.select(np.arange(4, M))]),
    }


def one_axis(size: int) -> st.SearchStrategy:
    integers = st.integers(-size, size - 1)
    return st.one_of(
        integers,
        st.slices(size),
        st.lists(integers, max_size=5).map(lambda values: np.array(values, np.int64)),
        st.lists(st.booleans(), min_size=size, max_size=size).map(np.array),
    )


def same_length(rows: list[int], steps: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows)[:, None], np.array(steps)


INDEX = st.one_of(
    one_axis(M),
    st.tuples(one_axis(M), st.slices(T + 1)),
    st.tuples(st.slices(M), one_axis(T + 1)),
    st.tuples(st.integers(-M, M - 1), st.integers(-T - 1, T)),
    st.builds(
        same_length,
        st.lists(st.integers(-M, M - 1), min_size=1, max_size=4),
        st.lists(st.integers(0, T), min_size=1, max_size=4),
    ),
)


@settings(max_examples=150, deadline=None)
@given(index=INDEX)
def test_frames_are_indexed_like_an_array(kinds, index):
    expected = padded().frames[index]
    for name, frames in kinds.items():
        found = frames[index]
        assert found.dtype == np.uint8 and found.shape == expected.shape and np.array_equal(found, expected), name


@pytest.mark.parametrize("index", [M, -M - 1, (0, T + 1), (slice(None), -T - 2), np.array([0, M])])
def test_an_index_outside_is_an_error_as_it_is_for_an_array(kinds, index):
    for frames in (padded().frames, *kinds.values()):
        with pytest.raises(IndexError):
            frames[index]


def test_rows_and_concatenation_are_those_of_arrays(kinds):
    one, other = padded(0), padded(5, 4)
    expected = concatenate_episodes([one.rows(one.lengths > 2), other])
    for name, frames in kinds.items():
        lazy = Episodes(**{**vars(one), "frames": frames})
        joined = concatenate_episodes([lazy.rows(one.lengths > 2), other])
        assert joined.frames.shape == expected.frames.shape, name
        assert np.array_equal(np.asarray(joined.frames), expected.frames), name
        assert joined.instructions == expected.instructions and np.array_equal(joined.seeds, expected.seeds)


def test_windows_are_the_same_bits_from_any_place(kinds):
    episodes = padded()

    def draw(frames):
        sampler = WindowSampler(frames, episodes.actions, episodes.lengths, context_frames=2, chunk_length=3)
        return sampler.draw(32, torch.Generator().manual_seed(0))

    expected = draw(episodes.frames)
    for name, frames in kinds.items():
        assert all(torch.equal(a, b) for a, b in zip(draw(frames), expected, strict=True)), name


def test_what_was_appended_may_change_afterwards(tmp_path):
    episodes = padded()
    with store.episode_writer(tmp_path / "a") as writer:
        given = Episodes(**{**vars(episodes), "frames": episodes.frames.copy(), "actions": episodes.actions.copy()})
        writer.append(given)
        given.frames[:], given.actions[:] = 0, 0
    loaded = load_episodes(tmp_path / "a")
    assert np.array_equal(loaded.frames[:], episodes.frames) and np.array_equal(loaded.actions, episodes.actions)


def test_parts_hold_what_fits_and_at_least_one_episode(kinds):
    episodes = Episodes(**{**vars(padded()), "frames": kinds["stored"]})
    each = padded().frames[0].nbytes
    for num_bytes, sizes in ((1, [1] * M), (4 * each, [4, 4, 1]), (4 * each - 1, [3, 3, 3]), (100 * each, [M])):
        parts = list(parts_of(episodes, num_bytes))
        assert [len(part) for part in parts] == sizes
        assert np.array_equal(np.concatenate([part.frames[:] for part in parts]), padded().frames)
    assert batch_within((T + 1, *SIZE, 3), 100 * each) == 64


# -- memory ----------------------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
from wmpo_ray.data.store import load_episodes
from wmpo_ray.rollout.fidelity import starts_of

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

load_episodes(Path(sys.argv[1])).rows(slice(1)).frames[0]  # what the libraries take once
before = peak_mib()
episodes = load_episodes(Path(sys.argv[1]), cache_bytes=16 * 2**20)
{look}
print(episodes.frames.nbytes / 2**20, peak_mib() - before)
"""
LOOKS = {
    "first frames": "starts_of(episodes)",
    "windows": """
for step in (0, 40):
    episodes.frames[np.arange(len(episodes))[:, None], step + np.arange(3)]
""",
}


@pytest.fixture(scope="module")
def large_file(tmp_path_factory) -> Path:
    """64 episodes of together 768 MiB, which all look the same and compress well."""
    path, lengths = tmp_path_factory.mktemp("large") / "a.parquet", np.full(8, 63)
    part = Episodes(
        np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None, None], (8, 64, 256, 256, 3)),
        np.zeros((8, 63, 7), np.float32),
        lengths,
        lengths > 0,
        ("a",) * 8,
        np.arange(8),
    )
    with store.episode_writer(path) as writer:
        for _ in range(8):
            writer.append(part)
    return path


@pytest.mark.parametrize("look", LOOKS)
def test_memory_is_bounded_by_what_is_looked_at(large_file, look):
    command = [sys.executable, "-c", MEASURED.format(look=LOOKS[look]), str(large_file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    total, taken = map(float, output.split())
    assert total > 750 and taken < 250, "the cache, a row group in two forms, and the frames asked for"


def test_a_file_is_written_in_the_memory_of_a_row_group(large_file, tmp_path):
    copy = """
import resource, sys
from pathlib import Path
from wmpo_ray.data.store import load_episodes, save_episodes

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

episodes = load_episodes(Path(sys.argv[1]), cache_bytes=0)
save_episodes(Path(sys.argv[2]), episodes.rows(slice(2)))
before = peak_mib()
save_episodes(Path(sys.argv[2]), episodes)
print(peak_mib() - before)
"""
    command = [sys.executable, "-c", copy, str(large_file), str(tmp_path / "copy")]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 250
    assert (tmp_path / "copy").read_bytes() == large_file.read_bytes()
