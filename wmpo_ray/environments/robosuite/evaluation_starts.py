"""The 128 start states that a task is evaluated on, as they were recorded with named versions of the simulator.

Runs place them by their seeds (`wmpo_ray.core.starts`, disjoint from those of training), which gives these states as long
as robosuite draws them as it did. Whoever uses another program, or another version, takes the joint positions from here.
`python -m benchmarks.robosuite_starts` records them anew.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.npz_files import load_npz
from wmpo_ray.core.section import shown
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_json
from wmpo_ray.environments.robosuite.simulator import Simulator

TASKS = ("Lift", "Stack", "NutAssemblySquare")
NUM_STARTS = 128
TOLERANCE = 1e-9  # metres and radians: processors differ in the last bit of a sine
NUM_COMPARED = 4
FOLDER, VERSIONS_FILE = "recorded_starts", "versions.json"
_MAX_BYTES = 2**20


class RecordedStarts(NamedTuple):
    seeds: np.ndarray  # [128] int64
    qpos: np.ndarray  # [128, nq] float64: MuJoCo's joint positions; velocities are zero
    versions: dict[str, str]  # of robosuite, mujoco and numpy


def recorded_starts(task: str) -> RecordedStarts:
    """Those of a task of `TASKS`."""
    folder = Path(str(resources.files("wmpo_ray.environments.robosuite"))) / FOLDER
    arrays = load_npz(folder / f"{task}.npz", ("seeds", "qpos"), _MAX_BYTES)
    return RecordedStarts(arrays["seeds"], arrays["qpos"], read_json(folder / VERSIONS_FILE, MAX_SETTINGS_BYTES))


def draw_starts(simulator: Simulator, count: int = NUM_STARTS) -> tuple[np.ndarray, np.ndarray]:
    """(seeds [count], joint positions [count, nq]) of the first starts of an evaluation, as robosuite draws them here."""
    seeds, drawn = start_seeds("evaluate", count, 0), []
    for seed in seeds.tolist():
        simulator.place(seed)
        drawn.append(simulator.data.qpos.copy())
    return seeds, np.stack(drawn)


def check_starts(simulator: Simulator, task: str) -> None:
    """Raises ConfigError where an evaluation would not start where every other does. Places scenes."""
    if task not in TASKS:
        return
    recorded = recorded_starts(task)
    _, drawn = draw_starts(simulator, NUM_COMPARED)
    expected = recorded.qpos[:NUM_COMPARED]
    if drawn.shape != expected.shape or not np.allclose(drawn, expected, rtol=0, atol=TOLERANCE):
        versions = ", ".join(f"{package} {version}" for package, version in sorted(recorded.versions.items()))
        raise ConfigError(
            f"environment.task={shown(task)}: this robosuite draws other start states than were recorded with {versions}, so "
            "results could not be compared; remove changes of robosuite, such as a macros_private.py"
        )
