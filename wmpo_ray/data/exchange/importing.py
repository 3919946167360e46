"""Import of other formats into a trajectory file; which format a file has is read from its first bytes; a folder is LeRobot's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import regular_file
from wmpo_ray.core.wording import counted
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import is_data_set, part_writer
from wmpo_ray.data.exchange.hdf5_files import check_headers
from wmpo_ray.data.exchange.lerobot import LerobotReader
from wmpo_ray.data.exchange.recording import (
    EpisodeReader,
    ImportOptions,
    as_episodes,
    check_recording,
    check_sizes,
)
from wmpo_ray.data.exchange.robomimic import RobomimicReader
from wmpo_ray.data.exchange.rollout_tar import RolloutTarReader
from wmpo_ray.data.store import episode_writer

HEAD_BYTES = 512
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    num_episodes: int
    num_successes: int
    notes: tuple[str, ...]  # what was assumed or left out, with the number of episodes


def reader_of(path: Path, options: ImportOptions) -> EpisodeReader:
    """An open reader for the format of a file. Raises UserError for any other format, ConfigError without h5py."""
    if is_data_set(path):
        raise UserError(f"{path} is a folder of trajectory files, which need no import")
    if path.is_dir() or path.name == "info.json":
        return LerobotReader(path, options)
    with open(regular_file(path, None), "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        check_headers(path)
        return RobomimicReader(path, options)
    if head.startswith(b"PAR1"):
        raise UserError(f"{path} is a Parquet file: a trajectory file needs no import")
    if head[257:262] == b"ustar":
        return RolloutTarReader(path, options)
    raise UserError(
        f"{path} is of no format that is read: HDF5 of robomimic or MimicGen, a tar file of rollouts, a LeRobot folder"
    )


def import_episodes(
    path: Path,
    out: Path,
    options: ImportOptions | None = None,
    progress: Progress = lambda done: None,
    append: bool = False,
) -> Imported:
    """Write the episodes of a file of another format to the trajectory file `out`, or add them as a part to the folder.

    All sizes are checked before the first episode is read, and each episode before it is written. `out` appears when it
    is whole. Raises UserError, which names file and episode, for anything that does not fit.
    """
    with reader_of(path, options or ImportOptions()) as reader:
        sizes = reader.sizes()
        check_sizes(path, sizes)
        longest = max(size.num_steps for size in sizes)
        horizon, successes = max(longest, reader.horizon), 0
        with (part_writer if append else episode_writer)(out, reader.provenance) as writer:
            for index, size in enumerate(sizes):
                found = reader.read(index)
                check_recording(path, size, found)
                if not index:
                    failures = tuple(found.failures)
                writer.append(as_episodes(found, horizon, failures, f"{path}, {size.label}"))
                successes += found.success
                progress(index + 1)
            notes = notes_of(reader, len(sizes))
            writer.provenance = with_notes(reader.provenance, notes)
    return Imported(len(sizes), successes, notes)


def notes_of(reader: EpisodeReader, num_episodes: int) -> tuple[str, ...]:
    """What was assumed or left out, in how many episodes."""
    counts = {note: number for note, number in reader.noted.items() if number}
    return tuple(
        f"{note} ({'all' if number == num_episodes else counted(number, 'episode')})" for note, number in counts.items()
    )


def with_notes(provenance: Provenance, notes: tuple[str, ...]) -> Provenance:
    return provenance.model_copy(update={"notes": tuple(dict.fromkeys((*provenance.notes, *notes)))})
