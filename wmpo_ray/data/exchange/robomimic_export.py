"""Trajectory files in the HDF5 layout of robomimic and MimicGen, written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_file
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import load_data, provenance_of
from wmpo_ray.data.exchange.hdf5_files import hdf5_library
from wmpo_ray.data.exchange.robomimic import CORRECTIONS, IMAGE_KEY, OWN_KEY

GZIP = {"compression": "gzip", "compression_opts": 4}
# What the layout has no place for; everything else comes back with an import.
NOT_EXPORTED = (
    "actions after an episode's end, and states and model_file of a simulator, which a trajectory file does not have"
)


def export_robomimic(path: Path, out: Path, image_key: str = "") -> int:
    """Write the episodes of a trajectory file, or of a folder of them, to `out`; returns how many there are.

    What the layout has no word for (instruction, seed, success, failure modes, horizon, provenance) stands in the
    attribute `wmpo_ray`, as JSON, which an import reads again. Raises UserError for a file that cannot be read, an
    episode without a step, and on a full disk; ConfigError where h5py is not installed.
    """
    library, episodes, provenance = hdf5_library(), load_data(path), provenance_of(path)
    total = int(episodes.lengths.sum())
    with atomic_file(out) as partial, library.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_env_args(provenance))
        data.attrs[OWN_KEY] = json.dumps(_facts(episodes, provenance))
        for row in range(len(episodes)):
            if not episodes.lengths[row]:
                raise UserError(f"{path}, row {row}: an episode without a step; the layout has no place for one")
            _write_demo(data.create_group(f"demo_{row}"), episodes, row, image_key or IMAGE_KEY)
    return len(episodes)


def _env_args(provenance: Provenance | None) -> dict[str, Any]:
    """The environment's settings as the layout has them; those that came with an import as they were."""
    settings = dict(provenance.environment) if provenance else {}
    if "env_name" in settings:
        return settings
    return {"env_name": settings.get("task") or settings.get("kind", "unknown"), "env_kwargs": settings}


def _facts(episodes: Episodes, provenance: Provenance | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"horizon": episodes.actions.shape[1]}
    return facts if provenance is None else facts | {"provenance": provenance.model_dump(mode="json")}


def _write_demo(demo: Any, episodes: Episodes, row: int, image_key: str) -> None:
    """One episode; the reward of 1 stands at the step that succeeds, `dones` at the last one."""
    length, success = int(episodes.lengths[row]), bool(episodes.success[row])
    video = episodes.frames[row, : length + 1]
    demo.attrs["num_samples"] = length
    facts = {"instruction": episodes.instructions[row], "seed": int(episodes.seeds[row]), "success": success}
    facts |= {"failures": {name: bool(flags[row]) for name, flags in episodes.failures.items()}}
    demo.attrs[OWN_KEY] = json.dumps(facts)
    demo["actions"] = episodes.actions[row, :length]
    demo["rewards"] = [0.0] * (length - 1) + [float(success)]
    demo["dones"] = [0] * (length - 1) + [1]
    if episodes.corrections is not None:
        demo[CORRECTIONS] = episodes.corrections[row, :length].astype("u1")
    for name, frames in (("obs", video[:-1]), ("next_obs", video[1:])):
        chunks = (1, *frames.shape[1:])
        demo.create_group(name).create_dataset(image_key, data=frames, chunks=chunks, **GZIP)
