"""How far agent and objects of a video are from where they really were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.core.interfaces import AGENT, AbleEnvironment
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.core.types import Episodes

SAME_FRAME = 2.0  # mean grey levels by which a frame may differ that another graphics driver renders again


class Truth(NamedTuple):
    """Where things were: positions name -> [M, T+1, 2 or 3], and which episodes [M] bool the simulator knows them of."""

    positions: dict[str, np.ndarray]
    simulated: np.ndarray


def true_positions(environment: Any, episodes: Episodes) -> Truth:
    """Of episodes with their frames in memory; the environment needs the ability "locate".

    The simulator repeats the episodes, where it can: where the frame at the end comes out as it was recorded, it knows the
    positions exactly. Of all others they are read from the real frames.
    """
    real = np.asarray(episodes.frames)
    read = environment.locate(real)
    simulated = np.zeros(len(episodes), bool)
    rows = np.flatnonzero(episodes.seeds >= 0)
    if "positions" not in environment.abilities or not len(rows):
        return Truth(read, simulated)
    found, last = _repeated(environment, episodes.rows(rows))
    differs = np.abs(last.astype(np.float32) - real[rows, -1]).mean((1, 2, 3))
    simulated[rows] = differs <= SAME_FRAME
    return Truth({name: _filled(read[name], found[name], rows, simulated) for name in read}, simulated)


def _filled(read: np.ndarray, found: np.ndarray, rows: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    positions = np.array(read, np.float64)
    kept = simulated[rows]
    positions[rows[kept]] = found[kept]
    return positions


def _repeated(environment: AbleEnvironment, episodes: Episodes) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(positions name -> [M, T+1, 2 or 3], the last frames [M, H, W, 3]) of the episodes carried out again."""
    environment.restore(seeded_starts(episodes.seeds))
    steps = [environment.positions()]
    for step in range(episodes.actions.shape[1]):
        environment.advance(episodes.actions[:, step])
        steps.append(environment.positions())
    return {name: np.stack([step[name] for step in steps], 1) for name in steps[0]}, environment.render()


def position_errors(environment: Any, truth: Truth) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What measures videos [M, T+1, H, W, 3] of the same episodes -> figures [M, T] of the frames after the first.

    object_error: mean distance over the objects that are found. object_lost: share of the objects that are not.
    agent_error: distance of the agent, NaN where it is not found: what the actions do shows in it first.
    """

    def measure(videos: np.ndarray) -> dict[str, np.ndarray]:
        found = environment.locate(videos[:, 1:])
        distance = {name: np.linalg.norm(found[name] - truth.positions[name][:, 1:], axis=-1) for name in found}
        errors = {"agent_error": distance.pop(AGENT)} if AGENT in distance else {}
        if distance:
            objects = np.stack(list(distance.values()))
            lost = np.isnan(objects)
            errors["object_error"] = np.divide(
                np.where(lost, 0.0, objects).sum(0),
                (~lost).sum(0),
                out=np.full(lost.shape[1:], np.nan),
                where=~lost.all(0),
            )
            errors["object_lost"] = lost.mean(0)
        return errors

    return measure
