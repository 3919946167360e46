"""Measures the fidelity of a world model: replays real actions in it and compares frames and events with reality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from wmpo_ray.core.interfaces import World
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes, Frames
from wmpo_ray.data.episodes import batch_within, parts_of
from wmpo_ray.rollout.replay import replay

MIN_SQUARED_ERROR = 0.05  # of grey levels: 61.1 dB


def replay_videos(
    world: World,
    starts: Sequence[StartState],
    actions: np.ndarray,
    seed: int,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Replay M starts with actions [M, T, D] -> videos [M, T+1, H, W, 3] uint8, the first frame real."""
    return np.concatenate(list(replay_batches(world, starts, actions, seed, batch_size, progress)))


def replay_batches(
    world: World,
    starts: Sequence[StartState],
    actions: np.ndarray,
    seed: int,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[np.ndarray]:
    """The videos of `replay_videos`, a batch of them at a time."""
    chunk_length = world.chunk_length
    for first in range(0, len(starts), batch_size):
        part = list(starts[first : first + batch_size])
        numbers = range(first, first + len(part))

        def seeds_of(purpose: str, chunk: int, numbers: range = numbers) -> list[int]:
            return [seed_for(seed, "replay", i, chunk * chunk_length) for i in numbers]

        frames = replay(world, part, actions[first : first + batch_size], seeds_of).frames
        assert frames is not None
        progress(first + len(part))
        yield frames


def replay_error(world: World, episodes: Episodes, seed: int) -> np.ndarray:
    """`psnr_per_frame` [T] of recorded actions replayed open loop; holds one batch of videos."""
    starts, done, errors = starts_of(episodes), 0, []
    for videos in replay_batches(world, starts, episodes.actions, seed, batch_within(episodes.frames.shape)):
        errors += [squared_error(episodes.frames[done + i][1:], video[1:]) for i, video in enumerate(videos)]
        done += len(videos)
    return _mean_psnr(np.stack(errors), episodes.lengths)


def psnr_per_frame(real: np.ndarray | Frames, imagined: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mean peak signal-to-noise ratio [T] in dB of predicted frames 1..T, over the videos that last that long."""
    return _mean_psnr(np.stack([squared_error(real[i][1:], video[1:]) for i, video in enumerate(imagined)]), lengths)


def squared_error(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Mean over pixels: frames [..., H, W, 3] uint8 -> [...] float32."""
    return ((real.astype(np.float32) - imagined) ** 2).mean((-3, -2, -1))


def psnr_of(error: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors; an error of zero has that of `MIN_SQUARED_ERROR`."""
    return 10 * np.log10(255.0**2 / np.maximum(error, MIN_SQUARED_ERROR))


def _mean_psnr(error: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    ratio = psnr_of(error)
    valid = np.arange(ratio.shape[1])[None] < lengths[:, None]
    return (ratio * valid).sum(0) / np.maximum(valid.sum(0), 1)


def binary_report(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Agreement, F1 and error counts of two boolean arrays [M]; of none, no agreement."""
    predicted, truth = np.asarray(predicted, bool), np.asarray(truth, bool)
    true_positive = int((predicted & truth).sum())
    false_positive = int((predicted & ~truth).sum())
    false_negative = int((~predicted & truth).sum())
    denominator = 2 * true_positive + false_positive + false_negative
    return {
        "agreement": float((predicted == truth).mean()) if len(truth) else 0.0,
        "f1": 2 * true_positive / denominator if denominator else 1.0,
        "false_positives": false_positive,
        "false_negatives": false_negative,
        "predicted_rate": float(predicted.mean()) if len(truth) else 0.0,
        "true_rate": float(truth.mean()) if len(truth) else 0.0,
        "num": len(truth),
    }


def starts_of(episodes: Episodes) -> list[StartState]:
    """The start state of each episode: its first frame, instruction and seed. No other frame is read."""
    first = episodes.frames[:, :1]
    return [
        StartState(frames, text, int(seed))
        for frames, text, seed in zip(first, episodes.instructions, episodes.seeds, strict=True)
    ]


def keyframes_of(episodes: Episodes, num: int, chunk_length: int, context_frames: int) -> list[StartState]:
    """Up to `num` further moments of each episode to start from: evenly spread beginnings of chunks before its end.

    Each with the frames that a world model continues from. They have no seed, because an environment cannot rebuild
    them. The last chunk before the end is not among them: little is left to learn there.
    """
    found = []
    for row, length in enumerate(episodes.lengths.tolist()):
        begins = np.arange(chunk_length, max(length - chunk_length, 0) + 1, chunk_length)
        chosen = np.unique(np.linspace(0, len(begins) - 1, min(num, len(begins))).round().astype(int))
        for step in begins[chosen].tolist():
            frames = np.asarray(episodes.frames[row, np.arange(step + 1 - context_frames, step + 1).clip(0)])
            found.append(StartState(frames, episodes.instructions[row]))
    return found


def one_chunk_ahead(world: World, episodes: Episodes, seed: int) -> Iterator[Episodes]:
    """`decode_one_chunk_ahead` of any number of episodes, a batch in memory at a time."""
    first = 0
    for part in parts_of(episodes):
        yield decode_one_chunk_ahead(world, part, seed, first)
        first += len(part)


def decode_one_chunk_ahead(world: World, episodes: Episodes, seed: int, first: int = 0) -> Episodes:
    """The episodes as imagined by the world model, each chunk from real context; needs the ability "imagines".

    Imagined frames with real labels: the training data for a reward model that judges imagined videos. Frames after
    the end stay real. `first` is the place of the first episode where these are a batch of more: it keys the seeds.
    """
    c, k = world.context_frames, world.chunk_length
    real = np.asarray(episodes.frames)
    parts = [real[:, :1]]
    for t in range(0, episodes.actions.shape[1], k):
        index = np.arange(t - c + 1, t + 1).clip(0)
        starts = [StartState(clip[index], "") for clip in real]

        def seeds_of(purpose: str, chunk: int, t: int = t) -> list[int]:
            return [seed_for(seed, "one-chunk", first + i, t) for i in range(len(episodes))]

        ahead = replay(world, starts, episodes.actions[:, t : t + k], seeds_of)
        assert ahead.frames is not None
        parts.append(ahead.frames[:, 1:])
    imagined = np.concatenate(parts, 1)
    shown = np.arange(real.shape[1])[None] <= episodes.lengths[:, None]
    return replace(episodes, frames=np.where(shown[..., None, None, None], imagined, real))
