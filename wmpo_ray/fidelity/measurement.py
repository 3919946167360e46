"""Replays held-out episodes in a world and measures how true its videos are, with one batch of videos in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from wmpo_ray.core.interfaces import Judge, World
from wmpo_ray.core.types import Episodes, Scores, Videos
from wmpo_ray.data.episodes import batch_within
from wmpo_ray.fidelity.failure_modes import modes_of
from wmpo_ray.fidelity.learned_distance import LearnedDistance
from wmpo_ray.fidelity.metrics import CEILING, IMAGINED, SOURCES, STILL, metrics_for
from wmpo_ray.fidelity.position_errors import position_errors, true_positions
from wmpo_ray.fidelity.similarity import psnr, ssim
from wmpo_ray.rollout.fidelity import replay_batches, starts_of
from wmpo_ray.statistics.agreement import outcomes_agree

Figures = dict[str, np.ndarray]  # by metric, [M, T]
Probe = Callable[[Episodes], Callable[[np.ndarray], Figures]]
"""Takes episodes with their frames in memory, and returns what measures videos [M, T+1, H, W, 3] of them."""


@dataclass(frozen=True)
class Instruments:
    """What videos are measured with, besides their pixels; what is None is not measured."""

    environment: Any = None  # its abilities say what can be read from frames
    judge: Judge | None = None
    distance: LearnedDistance | None = None
    device: torch.device | str = "cpu"


@dataclass
class Measured:
    """Figures of M episodes with T steps, NaN where there is none; of every source in `SOURCES`."""

    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # metric -> source -> [M, T] float32
    success: dict[str, np.ndarray] = field(default_factory=dict)  # source -> [M] bool, by the judge
    modes: dict[str, np.ndarray] = field(default_factory=dict)  # "real" and source -> [M] str: see `modes_of`
    simulated: np.ndarray | None = None  # [M] bool: true positions come from the simulator; None: no positions


def measure(
    world: World,
    episodes: Episodes,
    seed: int,
    instruments: Instruments,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Replay the actions of recorded episodes and measure the videos. Seeds are those of the stage `gate`."""
    return _joined(list(_batches(world, episodes, seed, instruments, progress)))


def _batches(
    world: World, episodes: Episodes, seed: int, instruments: Instruments, progress: Callable[[int], None]
) -> Iterator[Measured]:
    done, size = 0, batch_within(episodes.frames.shape)
    # Told after a batch is measured: that takes longer than imagining it.
    for imagined in replay_batches(world, starts_of(episodes), episodes.actions, seed, size):
        part = episodes.rows(slice(done, done + len(imagined)))
        part = replace(part, frames=np.asarray(part.frames))
        yield _measure_batch(world, part, imagined, instruments)
        done += len(imagined)
        progress(done)


def _measure_batch(world: World, part: Episodes, imagined: np.ndarray, instruments: Instruments) -> Measured:
    real = np.asarray(part.frames)
    makers: dict[str, Callable[[], np.ndarray]] = {  # one at a time: each takes as much memory as the batch
        IMAGINED: lambda: imagined,
        STILL: lambda: np.repeat(real[:, :1], real.shape[1], 1),
        CEILING: lambda: reconstructed(world, real),
    }
    found = Measured()
    probes = [_similarity(part, instruments), *_positions(part, instruments, found)]
    names, known = metrics_for(""), np.arange(1, real.shape[1])[None] <= part.lengths[:, None]
    for source in SOURCES:
        videos = makers[source]()
        figures = {name: values for probe in probes for name, values in probe(videos).items()}
        figures |= _judged(part, source, videos, instruments, found)
        for name, values in figures.items():
            kept = values if names[name].to_the_end else np.where(known, values, np.nan)
            found.values.setdefault(name, {})[source] = kept.astype(np.float32)
    return found


def reconstructed(world: Any, frames: np.ndarray) -> np.ndarray:
    """Videos [M, T+1, H, W, 3] through the codec of a world, one at a time; as they are where it has none."""
    if "reconstructs" not in world.abilities:
        return frames
    return np.concatenate([world.reconstruct(video[None]) for video in frames])


def _similarity(part: Episodes, instruments: Instruments) -> Callable[[np.ndarray], Figures]:
    def of_video(real: np.ndarray, shown: np.ndarray) -> Figures:
        figures = {"psnr_db": psnr(real, shown), "ssim": ssim(real, shown, instruments.device)}
        if instruments.distance is not None:
            figures["lpips"] = instruments.distance.between(real, shown)
        return figures

    def of_all(videos: np.ndarray) -> Figures:
        # A video at a time, because differences of pixels take several bytes each.
        found = [of_video(real[1:], shown[1:]) for real, shown in zip(part.frames, videos, strict=True)]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    return of_all


def _positions(part: Episodes, instruments: Instruments, found: Measured) -> Iterator[Callable[[np.ndarray], Figures]]:
    environment = instruments.environment
    if environment is not None and "locate" in environment.abilities:
        truth = true_positions(environment, part)
        found.simulated = truth.simulated
        yield position_errors(environment, truth)


def _judged(part: Episodes, source: str, videos: np.ndarray, instruments: Instruments, found: Measured) -> Figures:
    """Whether labels are right by each step; notes success and failure modes in `found`."""
    if instruments.judge is None:
        return {}
    starts = tuple(starts_of(part))
    scores = instruments.judge.judge(Videos(videos, part.instructions, part.actions, starts))
    found.success[source] = scores.success
    environment = instruments.environment
    can_tell = environment is not None and "failures" in environment.abilities
    shown = None
    if can_tell:
        lengths = np.where(scores.success, scores.finish_step, part.actions.shape[1])
        shown = environment.detect_failures(videos, part.actions, part.instructions, lengths)
    found.modes[source] = modes_of(scores.success, shown)
    found.modes["real"] = modes_of(part.success, part.failures or None)
    return {"label_agreement": _labels_right(scores, part)}


def _labels_right(scores: Scores, part: Episodes) -> np.ndarray:
    return outcomes_agree(scores.success, scores.finish_step, part.success, part.lengths, part.actions.shape[1])


def _joined(parts: list[Measured]) -> Measured:
    def joined(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    simulated = [part.simulated for part in parts if part.simulated is not None]
    return Measured(
        {name: joined([part.values[name] for part in parts]) for name in parts[0].values},
        joined([part.success for part in parts]),
        joined([part.modes for part in parts]),
        np.concatenate(simulated) if simulated else None,
    )
