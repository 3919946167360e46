"""A data set: a folder of trajectory files that many writers add to, each a file of its own at a time; or one file alone.

A part is written under `_unfinished`, which no reader of Parquet folders looks into, flushed to the disk and renamed: it is
there as a whole or not at all, whoever else writes, reads or is killed. The order is that of the names, which begin with the
time.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import explain_full_disk, flush
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance, about_of
from wmpo_ray.data.episodes import as_lazy, concatenate_episodes
from wmpo_ray.data.store import CACHE_BYTES, EpisodeWriter, episode_writer, load_episodes

UNFINISHED = "_unfinished"


def is_data_set(path: Path) -> bool:
    """Whether a path is a folder of trajectory files, and not one of LeRobot's."""
    return path.is_dir() and any(path.glob("*.parquet"))


def files_of(path: Path) -> list[Path]:
    """The trajectory files of a data set in order; a file is its own. Raises UserError for a folder without any."""
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.glob("*.parquet") if not each.name.startswith(("_", ".")))
    if not found:
        raise UserError(f"{path} is a folder without trajectory files (*.parquet)")
    return found


def load_data(path: Path, cache_bytes: int = CACHE_BYTES) -> Episodes:
    """The episodes of a data set, read as `load_episodes` reads those of a file.

    Actions have room for the longest horizon of all files; those beyond a file's own are zeros. Raises UserError as
    `load_episodes` does, and for files that do not fit each other. Failure modes that not all report are left out.
    """
    files = files_of(path)
    parts = [load_episodes(file, cache_bytes=cache_bytes // len(files)) for file in files]
    for file, part in zip(files, parts, strict=True):
        _check_fit(files[0], parts[0], file, part)
    horizon = max(part.actions.shape[1] for part in parts)
    return parts[0] if len(parts) == 1 else concatenate_episodes([_with_horizon(part, horizon) for part in parts])


def _check_fit(first_file: Path, first: Episodes, file: Path, part: Episodes) -> None:
    for what, of_first, of_part in (
        ("frames of shape", first.frames.shape[2:], part.frames.shape[2:]),
        ("action dimensions:", first.actions.shape[2], part.actions.shape[2]),
    ):
        if of_first != of_part:
            raise UserError(f"{file}: {what} {of_part}, those of {first_file} are {of_first}; keep them in two folders")


def _with_horizon(part: Episodes, horizon: int) -> Episodes:
    room = ((0, 0), (0, horizon - part.actions.shape[1]))
    corrections = None if part.corrections is None else np.pad(part.corrections, room)
    actions = np.pad(part.actions, (*room, (0, 0)))
    return replace(part, frames=as_lazy(part).with_horizon(horizon), actions=actions, corrections=corrections)


def provenance_of(path: Path) -> Provenance | None:
    """Of all episodes of a data set: what its files agree on, and a note where they do not. None if no file says."""
    each = [about_of(file).provenance for file in files_of(path)]
    known = [provenance for provenance in each if provenance is not None]
    if not known or all(provenance == each[0] for provenance in each):
        return each[0]
    facts = {name: [getattr(one or Provenance(), name) for one in each] for name in Provenance.model_fields}
    agreed = {name: values[0] for name, values in facts.items() if all(value == values[0] for value in values)}
    notes = tuple(dict.fromkeys(note for one in known for note in one.notes))
    return Provenance(**{**agreed, "notes": (*notes, f"the {len(each)} files are not all of one origin")})


@contextmanager
def part_writer(folder: Path, provenance: Provenance | None = None, name: str = "") -> Iterator[EpisodeWriter]:
    """Add a part to a data set, which is made where it is missing: like `episode_writer`, beside any other writers.

    name: of the part's file, for who may write the same part again, which then takes the place of the first; "": a new one.

    Raises ValueError if nothing was appended, UserError on a full disk and for episodes that do not fit those of the
    first file that is there.
    """
    name = name or f"part-{time.time_ns():020d}-{secrets.token_hex(4)}.parquet"
    unfinished = folder / UNFINISHED
    with explain_full_disk(folder):
        unfinished.mkdir(parents=True, exist_ok=True)
        try:
            with episode_writer(unfinished / name, provenance) as writer:
                yield writer
            if there := sorted(folder.glob("*.parquet")):
                _check_fit(there[0], load_episodes(there[0]), unfinished / name, load_episodes(unfinished / name))
            os.rename(unfinished / name, folder / name)
            flush(folder)
        finally:
            (unfinished / name).unlink(missing_ok=True)
