"""Recorded episodes that a run takes instead of recording its own: a file or a folder of ours, or any format that is imported.

Every episode is checked against what the run needs, and made as long as its horizon; only those that the run asks for
are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import file_states
from wmpo_ray.core.section import shown
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.wording import counted
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import is_data_set, load_data, provenance_of
from wmpo_ray.data.episodes import RaggedFrames
from wmpo_ray.data.exchange.importing import notes_of, reader_of, with_notes
from wmpo_ray.data.exchange.recording import ImportOptions, as_episodes, check_recording, check_sizes
from wmpo_ray.data.file_facts import action_problem
from wmpo_ray.data.store import episode_writer

PARQUET = b"PAR1"


class SourceNeeds(NamedTuple):
    """What a run asks of the episodes of one of its sources."""

    key: str  # the setting that names the file, such as "demos.source"
    path: str
    count_key: str  # the setting for their number
    num_episodes: int
    frame_shape: tuple[int, int, int]
    action_dims: int
    instructions: tuple[str, ...]  # those of the environment; empty: any
    horizon: int  # steps
    chunk_length: int  # steps of the shortest window
    held_out_from: int  # start states with this seed or a higher one are held out
    is_held_out: bool  # whether these episodes are: nothing may be trained on them
    needs_starts: str  # the setting that has the environment rebuild their start states; "": none does
    must_be_real: bool
    image_key: str = ""  # of the camera; "": the format's usual one
    instruction: str = ""  # of every episode; "": as the file has it

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]


@dataclass
class _Opened:
    """Episodes on their way in; `provenance` is complete once they are read."""

    provenance: Provenance
    episodes: Iterator[tuple[str, Episodes]]  # where it stands in the file, one episode
    num_episodes: int
    notes: Callable[[], tuple[str, ...]]


def check_source(needs: SourceNeeds) -> None:
    """Read the episodes that a run would take. Raises UserError, which names setting, file, episode and bound."""
    _check_once(needs, file_states(_path(needs)))


@lru_cache(maxsize=16)
def _check_once(needs: SourceNeeds, _states: tuple[tuple[str, int, int], ...]) -> None:
    """A run asks more than once before its first stage; a file that did not change is read once."""
    with _opened(needs) as opened:
        for _ in _fitted(needs, opened):
            pass


def take_source(needs: SourceNeeds, out: Path) -> None:
    """Write the episodes that a run takes to its own trajectory file. Raises as `check_source` does."""
    with _opened(needs) as opened, episode_writer(out, opened.provenance) as writer:
        for episode in _fitted(needs, opened):
            writer.append(episode)
        writer.provenance = with_notes(opened.provenance, (*opened.notes(), f"taken from {_path(needs).name}"))


def extent_of(key: str, source: str, image_key: str = "") -> tuple[int, int]:
    """How many episodes the file of the setting `key` holds, and the steps of the longest one; reads no frames.

    Raises UserError for a file that is missing or damaged.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{key} = {source}: there is no such file; set {key}")
    if is_data_set(path) or (path.is_file() and _begins_with(path, PARQUET)):
        lengths = load_data(path).lengths
        return len(lengths), int(lengths.max(initial=0))
    options = ImportOptions(image_key=image_key, image_key_knob=f"{key}_image_key")
    with reader_of(path, options) as reader:
        sizes = reader.sizes()
        check_sizes(path, sizes)
        return len(sizes), max(size.num_steps for size in sizes)


def _path(needs: SourceNeeds) -> Path:
    return Path(needs.path).expanduser()


def _fitted(needs: SourceNeeds, opened: _Opened) -> Iterator[Episodes]:
    """The first episodes, checked, with room for the run's horizon."""
    where = f"{needs.key} = {needs.path}"
    if opened.num_episodes < needs.num_episodes:
        raise UserError(
            f"{where} holds {counted(opened.num_episodes, 'episode')}, {needs.count_key} = {needs.num_episodes} asks for "
            f"more; lower {needs.count_key}"
        )
    if needs.must_be_real and opened.provenance.origin == "imagined":
        raise UserError(f"{where} holds imagined episodes; the real budget takes real ones")
    for count, (label, episode) in enumerate(opened.episodes):
        if count == needs.num_episodes:
            return
        _check_fit(f"{where}, {label}", episode, needs)
        yield _with_horizon(episode, needs.horizon)


def _check_fit(where: str, episode: Episodes, needs: SourceNeeds) -> None:
    length, seed, text = int(episode.lengths[0]), int(episode.seeds[0]), episode.instructions[0]
    size, asked = tuple(episode.frames.shape[2:]), needs.frame_shape
    if size != asked:
        raise UserError(
            f"{where}: frames of {size[0]} x {size[1]} pixels; the environment's have {asked[0]} x {asked[1]}"
        )
    if episode.actions.shape[2] != needs.action_dims:
        raise UserError(
            f"{where}: actions of {episode.actions.shape[2]} dimensions; the environment's have {needs.action_dims}"
        )
    if not text.strip():
        raise UserError(f"{where}: no instruction; give it with {needs.section}.source_instruction")
    if needs.instructions and text not in needs.instructions:
        known = ", ".join(shown(each) for each in needs.instructions)
        raise UserError(f"{where}: the instruction {shown(text)} is none of the environment's: {known}")
    if length > needs.horizon:
        raise UserError(f"{where}: {length} steps, more than environment.horizon = {needs.horizon}; raise it")
    if length < needs.chunk_length:
        raise UserError(
            f"{where}: {length} steps, fewer than rollout.chunk_length = {needs.chunk_length}; leave it out"
        )
    if problem := action_problem(episode.actions[0]):
        raise UserError(f"{where}: {problem}")
    if needs.needs_starts and seed < 0:
        raise UserError(
            f"{where}: its start state is not known, and {needs.needs_starts} has the environment rebuild it; change it"
        )
    if seed >= 0 and (seed >= needs.held_out_from) != needs.is_held_out:
        kind, use = ("a training", "held out") if needs.is_held_out else ("a held-out", "trained on")
        raise UserError(f"{where}: it begins at {kind} start state ({seed}) and would be {use}; name another file")


def _with_horizon(episode: Episodes, horizon: int) -> Episodes:
    """The same episode with room for `horizon` steps; actions beyond the recorded ones are zeros."""
    video, length = np.asarray(episode.frames[0, : int(episode.lengths[0]) + 1]), min(horizon, episode.actions.shape[1])
    actions = np.zeros((1, horizon, episode.actions.shape[2]), np.float32)
    actions[:, :length] = episode.actions[:, :length]
    corrections = None
    if episode.corrections is not None:
        corrections = np.zeros((1, horizon), bool)
        corrections[:, :length] = episode.corrections[:, :length]
    frames = RaggedFrames([video], horizon, video.shape[1:])
    return replace(episode, frames=frames, actions=actions, corrections=corrections)


@contextmanager
def _opened(needs: SourceNeeds) -> Iterator[_Opened]:
    path = _path(needs)
    if not path.exists():
        raise UserError(f"{needs.key} = {needs.path}: there is no such file; set {needs.key}")
    if is_data_set(path) or (path.is_file() and _begins_with(path, PARQUET)):
        if needs.image_key:
            raise UserError(
                f"{needs.section}.source_image_key = {needs.image_key}: {path} is a trajectory file, which has one camera and "
                "no name for it; remove it"
            )
        yield _own_files(path, needs.instruction)
        return
    # An environment with one instruction lends it to files without language.
    text = needs.instruction or (needs.instructions[0] if len(needs.instructions) == 1 else "")
    knobs = {
        "image_key_knob": f"{needs.section}.source_image_key",
        "instruction_knob": f"{needs.section}.source_instruction",
    }
    with reader_of(path, ImportOptions(text, needs.image_key, **knobs)) as reader:
        sizes = reader.sizes()
        check_sizes(path, sizes)

        def read() -> Iterator[tuple[str, Episodes]]:
            names: tuple[str, ...] | None = None
            for index, size in enumerate(sizes):
                found = reader.read(index)
                check_recording(path, size, found)
                names = tuple(found.failures) if names is None else names
                room = max(len(found.actions), found.length)
                yield size.label, as_episodes(found, room, names, f"{path}, {size.label}")

        yield _Opened(reader.provenance, read(), len(sizes), lambda: notes_of(reader, needs.num_episodes))


def _own_files(path: Path, instruction: str) -> _Opened:
    episodes = load_data(path)
    if instruction:
        episodes = replace(episodes, instructions=(instruction,) * len(episodes))
    rows = ((f"row {row}", episodes.rows(slice(row, row + 1))) for row in range(len(episodes)))
    return _Opened(provenance_of(path) or Provenance(made_by=path.name), rows, len(episodes), lambda: ())


def _begins_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic
