"""Rollouts as the reference implementation of WMPO writes them: WebDataset tar files, read and never unpacked.

Each rollout is three members: `NAME.video.npy` (T+1, H, W, 3) uint8, `NAME.action.npy` (T, D) float and `NAME.meta.json`
with `complete` (whether it succeeded), `finish_step` (actions until then) and `unique_id`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import BAD_ARCHIVE, npy_header, read_npy
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import regular_file
from wmpo_ray.data.exchange.recording import (
    MAX_EPISODES,
    MAX_JSON_BYTES,
    EpisodeReader,
    EpisodeSize,
    ImportOptions,
    Recording,
    json_object,
)

VIDEO, ACTIONS, META = "video.npy", "action.npy", "meta.json"
BLOCK = 512
CUT = "frames after the first success are left out"
Found = TypeVar("Found")


class RolloutTarReader(EpisodeReader):
    def __init__(self, path: Path, options: ImportOptions):
        super().__init__(path, options)
        if options.image_key:
            raise UserError(
                f"{options.image_key_knob} {options.image_key}: {path} has one camera, and no name for it; leave it out"
            )
        self._num_bytes = regular_file(path, None).stat().st_size
        with ExitStack() as opening, self._explained():
            self._file = opening.enter_context(tarfile.open(path, "r:", errorlevel=2))
            self._rollouts = self._members()
            self._opened = opening.pop_all()

    def close(self) -> None:
        self._opened.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (*BAD_ARCHIVE, tarfile.TarError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path} is damaged or no tar file of rollouts: {reason[:300]}") from error

    def _members(self) -> dict[str, dict[str, tarfile.TarInfo]]:
        """Name of a rollout -> its members by what they are, in the order of the archive."""
        rollouts: dict[str, dict[str, tarfile.TarInfo]] = {}
        offset = -1
        while (member := self._file.next()) is not None:
            if self._file.offset <= offset or member.size < 0 or member.offset_data + member.size > self._num_bytes:
                raise UserError(f"{self.path}: {shown(member.name)} claims {member.size} bytes, which are not there")
            offset = self._file.offset
            folder, _, name = member.name.rpartition("/")
            key, _, what = name.partition(".")
            if what not in (VIDEO, ACTIONS, META):
                continue
            if not member.isreg() or member.issparse():
                raise UserError(
                    f"{self.path}: {shown(member.name)} is a link or no plain file; only plain files are read"
                )
            parts = rollouts.setdefault(f"{folder}/{key}" if folder else key, {})
            if what in parts or len(rollouts) > MAX_EPISODES:
                raise UserError(f"{self.path}: {shown(member.name)} stands twice, or it is one of too many rollouts")
            parts[what] = member
        self._check_end()
        return rollouts

    def _check_end(self) -> None:
        """An archive ends with empty blocks: where a header is damaged, tarfile stops and says nothing."""
        with open(self.path, "rb") as file:
            file.seek(self._file.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise UserError(f"{self.path} is damaged or cut off at byte {self._file.offset}: its end is not there")

    def sizes(self) -> Sequence[EpisodeSize]:
        found = []
        for name, parts in self._rollouts.items():
            if missing := [what for what in (VIDEO, ACTIONS, META) if what not in parts]:
                raise UserError(f"{self.path}, {shown(name)}: {name}.{missing[0]} is missing")
            video, _, video_dtype = self._open(name, VIDEO, npy_header)
            actions, _, actions_dtype = self._open(name, ACTIONS, npy_header)
            if video_dtype != np.uint8 or len(video) != 4 or actions_dtype.kind != "f" or len(actions) != 2:
                raise UserError(
                    f"{self.path}, {name}: the video is {video_dtype} {video}, the actions are {actions_dtype} {actions}; "
                    "expected uint8 (T+1, H, W, 3) and floats (T, D)"
                )
            if video[0] != actions[0] + 1:
                raise UserError(
                    f"{self.path}, {name}: {video[0]} frames for {actions[0]} actions; one more is expected"
                )
            found.append(EpisodeSize(name, actions[0], video[1:], actions[1]))
        return found

    def read(self, index: int) -> Recording:
        name = list(self._rollouts)[index]
        where = f"{self.path}, {name}.{META}"
        meta = json_object(self._open(name, META, _small), where)
        actions = self._open(name, ACTIONS, read_npy)
        success, step = meta.get("complete"), meta.get("finish_step")
        if not isinstance(success, bool) or (success and not (type(step) is int and 1 <= step <= len(actions))):
            raise UserError(
                f"{where}: complete = {shown(success)}, finish_step = {shown(step)}; expected true or false, and for a "
                f"success 1 to {len(actions)} actions"
            )
        length = int(step) if success and step is not None else len(actions)
        self.noted[CUT] += length < len(actions)
        frames = self._open(name, VIDEO, read_npy)[: length + 1]
        return Recording(frames, actions, length, success, self.instruction_of(name, meta.get("instruction", "")))

    def _open(self, name: str, what: str, read: Callable[[IO[bytes], int, str], Found]) -> Found:
        member = self._rollouts[name][what]
        with self._explained():
            file = self._file.extractfile(member)
            assert file is not None, "a regular file"
            with file:
                return read(file, member.size, f"{self.path}, {member.name}")


def _small(file: IO[bytes], num_bytes: int, where: str) -> bytes:
    if num_bytes > MAX_JSON_BYTES:
        raise UserError(f"{where} has {num_bytes} bytes, more than the {MAX_JSON_BYTES} that are read of it")
    return file.read(num_bytes)
