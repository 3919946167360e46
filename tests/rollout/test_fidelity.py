"""Fidelity metrics of an imagined world, checked where the true values are known."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.small_world import scene_starts, small_world_model
from wmpo_ray.core.types import Episodes
from wmpo_ray.data import episodes as data_episodes
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout.fidelity import (
    binary_report,
    decode_one_chunk_ahead,
    keyframes_of,
    one_chunk_ahead,
    psnr_per_frame,
    replay_error,
    replay_videos,
    starts_of,
)
from wmpo_ray.world_models.diffusion import initialise


def recorded(num: int, horizon: int):
    """Actions [N, T, 3] and frames [N, T+1, H, W, 3] of random behaviour."""
    env = PocketEnvironment(horizon)
    actions = np.random.default_rng(0).uniform(-1, 1, (num, horizon, 3)).astype(np.float32)
    frames = [env.reset(range(num))] + [env.step(actions[:, t])[0] for t in range(horizon)]
    return actions, np.stack(frames, 1)


def test_replay_in_the_perfect_world_is_what_was_recorded():
    actions, frames = recorded(5, 12)
    world = EnvironmentWorld(PocketEnvironment(12), chunk_length=4)
    done = []
    videos = replay_videos(world, scene_starts(5), actions, seed=0, batch_size=2, progress=done.append)
    assert np.array_equal(videos, frames)
    assert done == [2, 4, 5]


def test_replay_does_not_depend_on_the_batch_size():
    actions, _ = recorded(3, 8)
    world = small_world_model()
    one, all_ = (replay_videos(world, scene_starts(3), actions, seed=0, batch_size=n) for n in (1, 3))
    # A value at a rounding edge may fall to either side.
    assert np.abs(one.astype(int) - all_).max() <= 1
    assert np.array_equal(replay_videos(world, scene_starts(3), actions, seed=0, batch_size=3), all_)
    assert not np.array_equal(replay_videos(world, scene_starts(3), actions, seed=1, batch_size=3), all_)


def test_the_error_of_a_replay_is_the_same_a_batch_at_a_time(monkeypatch):
    actions, frames = recorded(5, 8)
    lengths = np.array([8, 6, 8, 3, 8])
    texts = tuple(start.instruction for start in scene_starts(5))
    episodes = Episodes(frames, actions, lengths, lengths < 8, texts, np.arange(5))
    world = EnvironmentWorld(PocketEnvironment(8), chunk_length=4)
    broken = replace(episodes, actions=-actions)
    whole = replay_error(world, broken, seed=0)
    expected = psnr_per_frame(frames, replay_videos(world, scene_starts(5), -actions, seed=0), lengths)
    assert np.array_equal(whole, expected) and len(np.unique(whole)) > 2
    monkeypatch.setattr(data_episodes, "BATCH_BYTES", 2 * frames[0].nbytes)
    assert np.array_equal(replay_error(world, broken, seed=0), expected)


def test_one_chunk_ahead_is_the_same_a_batch_at_a_time(monkeypatch):
    actions, frames = recorded(5, 8)
    texts = tuple(start.instruction for start in scene_starts(5))
    episodes = Episodes(frames, actions, np.full(5, 8), np.zeros(5, bool), texts, np.arange(5))
    world = small_world_model()
    whole = decode_one_chunk_ahead(world, episodes, seed=0).frames
    monkeypatch.setattr(data_episodes, "BATCH_BYTES", 2 * frames[0].nbytes)
    parts = list(one_chunk_ahead(world, episodes, seed=0))
    assert [len(part) for part in parts] == [2, 2, 1]
    # A value at a rounding edge may fall to either side.
    assert np.abs(np.concatenate([part.frames for part in parts]).astype(int) - whole).max() <= 1


def test_one_chunk_ahead_starts_every_chunk_from_the_real_frames():
    """Shown by a world in which nothing moves, each chunk repeats the real frame before it; the end stays real."""
    actions, frames = recorded(3, 8)
    lengths = np.array([8, 6, 2])
    texts = tuple(start.instruction for start in scene_starts(3))
    episodes = Episodes(frames, actions, lengths, lengths < 8, texts, np.arange(3))
    world = small_world_model()
    initialise(world.denoiser.network)
    shown = decode_one_chunk_ahead(world, episodes, seed=0)
    still = np.concatenate([frames[:, :1], frames[:, :1].repeat(4, 1), frames[:, 4:5].repeat(4, 1)], 1)
    for i, length in enumerate(lengths):
        assert np.array_equal(shown.frames[i, : length + 1], still[i, : length + 1])
        assert np.array_equal(shown.frames[i, length + 1 :], frames[i, length + 1 :])
    assert np.array_equal(shown.success, episodes.success) and shown.instructions == texts


def test_starts_of_episodes_are_their_scenes():
    actions, frames = recorded(2, 4)
    episodes = Episodes(frames, actions, np.array([4, 4]), np.zeros(2, bool), ("a", "b"), np.array([0, 1]))
    for one, other in zip(starts_of(episodes), scene_starts(2), strict=True):
        assert np.array_equal(one.frames, other.frames) and one.seed == other.seed
    assert [start.instruction for start in starts_of(episodes)] == ["a", "b"]


def test_psnr_falls_by_six_decibels_when_the_error_doubles():
    real = np.full((2, 4, 8, 8, 3), 100, np.uint8)
    lengths = np.array([3, 3])
    curves = [psnr_per_frame(real, real + np.uint8(error), lengths) for error in (4, 8)]
    assert np.allclose(curves[0], 20 * np.log10(255 / 4), atol=1e-3)
    assert np.allclose(curves[0] - curves[1], 20 * np.log10(2), atol=1e-3)


def test_psnr_ignores_the_start_frame_and_what_follows_the_end():
    real = np.full((2, 4, 8, 8, 3), 100, np.uint8)
    imagined = real + np.uint8(4)
    expected = psnr_per_frame(real, imagined, np.array([3, 1]))
    imagined[:, 0] = 0
    imagined[1, 2:] = 0
    assert np.array_equal(psnr_per_frame(real, imagined, np.array([3, 1])), expected)


def test_binary_report_counts():
    report = binary_report([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert (report["false_positives"], report["false_negatives"], report["num"]) == (1, 1, 5)
    assert report["agreement"] == pytest.approx(3 / 5)
    assert report["f1"] == pytest.approx(2 / 3)
    assert report["predicted_rate"] == report["true_rate"] == pytest.approx(3 / 5)


def test_f1_of_nothing_found_where_nothing_is_is_perfect():
    assert binary_report([0, 0], [0, 0])["f1"] == 1.0
    assert binary_report([0, 0], [0, 1])["f1"] == 0.0


def test_keyframes_are_beginnings_of_chunks_with_the_frames_before_them():
    frames = np.arange(17, dtype=np.uint8)[None, :, None, None, None] + np.zeros((2, 1, 1, 1, 3), np.uint8)
    actions, success = np.zeros((2, 16, 3), np.float32), np.array([True, False])
    episodes = Episodes(frames, actions, np.array([6, 16]), success, ("a", "b"), np.array([3, 4]))

    def shown(num: int, context_frames: int = 2) -> list[tuple[str, list[int]]]:
        found = keyframes_of(episodes, num, 4, context_frames)
        assert all(start.seed is None for start in found), "an environment cannot rebuild them"
        return [(start.instruction, start.frames[:, 0, 0, 0].tolist()) for start in found]

    assert shown(1) == [("b", [3, 4])], "an episode of 6 steps has no whole chunk after its second decision"
    assert shown(2) == [("b", [3, 4]), ("b", [11, 12])]
    assert [last for _, (_, last) in shown(9)] == [4, 8, 12]
    assert shown(1, 6) == [("b", [0, 0, 1, 2, 3, 4])]
