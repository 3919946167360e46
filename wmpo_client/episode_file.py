"""A recorded episode as a file: written step by step, whole if its last record is there, read under bounds."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import Refusal, bad

MAGIC = b"WMPOEP1\n"
MAX_RECORD_BYTES = 64 * 2**20
MAX_EPISODE_BYTES = 4 * 2**30
_LENGTH = struct.Struct("<I")


class EpisodeFileWriter:
    """Appends records; after a crash the file holds all but perhaps the last of them."""

    def __init__(self, path: Path):
        self.path, self._file = path, open(path, "xb")  # noqa: SIM115  closed by `close`
        self._file.write(MAGIC)

    def append(self, record: Any) -> None:
        """A record with a `start`, `step` or `end`. Raises OSError on a full disk, ValueError for one that is too large."""
        data = record.SerializeToString()
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"a step of {len(data)} bytes; {MAX_RECORD_BYTES} are the most: send smaller pictures")
        self._file.write(_LENGTH.pack(len(data)) + data)
        self._file.flush()

    def close(self) -> None:
        """Everything is on the disk when this returns."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_records(path: Path) -> Iterator[Any]:
    """The records of a file. Raises Refusal for one that is no episode, is cut off, or has records out of order."""
    ended = False
    for index, (record, _) in enumerate(_records(path)):
        what = record.WhichOneof("what")
        if ended or (what == "start") != (index == 0) or what is None:
            raise bad(f"record {index} of an episode is {what or 'none that is known'}, which does not stand there")
        ended = what == "end"
        yield record
    if not ended:
        raise bad("an episode without an end")


def mend(path: Path) -> bool:
    """Give an episode whose program was killed an end without a verdict; False where it has no step worth keeping."""
    whole, num_steps, ended = len(MAGIC), 0, False
    try:
        for record, end in _records(path):
            what = record.WhichOneof("what")
            num_steps += what == "step"
            whole, ended = end, what == "end"
    except Refusal:
        pass  # the record that was being written
    if not num_steps:
        return False
    with open(path, "r+b") as file:
        file.truncate(whole)
        file.seek(whole)
        if not ended:
            data = pb.EpisodeRecord(end=pb.EpisodeEnd(verdict=pb.UNKNOWN)).SerializeToString()
            file.write(_LENGTH.pack(len(data)) + data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _records(path: Path) -> Iterator[tuple[Any, int]]:
    """(record, where it ends in the file)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise bad("no episode: it does not begin as one")
        at = len(MAGIC)
        while at < size:
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
            at += _LENGTH.size + length
            if length > MAX_RECORD_BYTES or at > size:
                raise bad("an episode that is cut off, or whose records are too long")
            try:
                yield pb.EpisodeRecord.FromString(file.read(length)), at
            except DecodeError:
                raise bad("an episode with a record that is none") from None
