"""The parts of a recording that is not complete: one trajectory file for each batch that is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.recording_actor import EpisodeBatch
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, remove_leftovers
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance, about_of
from wmpo_ray.data.store import StoredFrames, episode_writer, load_episodes, load_frames

WRITTEN = "written"  # stands in the folder once the result is written and the parts are gone


def parts_folder(name: str) -> str:
    """Where the parts of `name` are, relative to the folder of the round: state of the stage that makes them."""
    return f"checkpoints/episodes-{name}"


class Parts:
    """A folder of parts; only the one process that runs the stage opens it."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    @property
    def are_written(self) -> bool:
        """Whether an earlier attempt came to the end of this recording, though not to that of its stage."""
        return (self.folder / WRITTEN).exists()

    def path(self, batch: EpisodeBatch, kind: str = "parquet") -> Path:
        return self.folder / f"{batch.first:06d}.{kind}"

    def has(self, batch: EpisodeBatch, provenance: Provenance) -> bool:
        """Whether the part of a batch is there, whole, and made as it would be made now."""
        path = self.path(batch)
        try:
            found = about_of(path).provenance
            is_same = found is not None and found.model_copy(update={"versions": {}}) == provenance
            return is_same and np.array_equal(read_whole(path).seeds, batch.seeds)
        except UserError:
            return False

    def write(self, batches: Sequence[EpisodeBatch], target: Path) -> None:
        """Put all parts into one trajectory file, and delete them; holds a row group of frames at a time.

        Raises UserError where simulators of several versions made them.
        """
        paths = [self.path(batch) for batch in batches]
        origins = [about_of(path).provenance for path in paths]
        for path, origin in zip(paths, origins, strict=True):
            if origin != origins[0]:
                raise UserError(
                    f"{path} was made with {_versions(origin)}, {paths[0].name} beside it with {_versions(origins[0])}: "
                    f"delete {self.folder} to record all of it again with --resume"
                )
        with episode_writer(target, origins[0]) as writer:
            for path in paths:
                writer.append(load_episodes(path, cache_bytes=0))
        self.finish()

    def finish(self) -> None:
        """Note that the result is written; the parts are not needed any more."""
        atomic_write(self.folder / WRITTEN, "")
        for path in self.folder.iterdir():
            if path.name != WRITTEN:
                path.unlink()


def _versions(provenance: Provenance | None) -> str:
    versions = provenance.versions if provenance is not None else {}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown versions"


def read_whole(path: Path) -> Episodes:
    """The episodes of a file of which every row group was read. Raises UserError if it is missing or damaged."""
    episodes = load_episodes(path, cache_bytes=0)
    assert isinstance(episodes.frames, StoredFrames)
    for group in range(len(episodes.frames.group_sizes)):
        load_frames(path, group)
    return episodes
