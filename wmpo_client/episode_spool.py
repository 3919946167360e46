"""Episodes on the robot's own disk until the server has them, and the thread that brings them there.

A spool is a folder: `recording/` holds what is being recorded, `ready/` what is whole and not at the server yet, `refused/`
what the server will never take. An episode leaves `ready/` when the server says that it is whole on its disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any, Callable

import grpc

from wmpo_client.episode_file import EpisodeFileWriter, mend
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError
from wmpo_client.server_connection import Connection, code_of, details_of

PIECE_BYTES = 2**20
SUFFIX = ".episode"
ID = re.compile(r"[a-z0-9][a-z0-9_-]{7,79}")
NEVER = ("INVALID_ARGUMENT", "ALREADY_EXISTS", "OUT_OF_RANGE")  # asked again, the answer would be the same


class Spool:
    """One process at a time has it. Opening it takes care of what a killed one left. Raises ClientError."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.recording, self.ready, self.refused = (folder / name for name in ("recording", "ready", "refused"))
        try:
            for each in (self.recording, self.ready, self.refused):
                each.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / ".lock", "w")  # noqa: SIM115  closed by `close`
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"{folder} is in use by another process; give this robot a spool of its own") from None
        except OSError as error:
            raise ClientError(f"{folder}: {error.strerror}; choose another spool") from error
        for path in sorted(self.recording.iterdir()):
            if path.suffix == SUFFIX and mend(path):
                self.finish(path)
            else:
                path.unlink()

    def begin(self) -> EpisodeFileWriter:
        """A new episode's file. Its name begins with the time and is never used twice, whatever the clock does."""
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(6)
        return EpisodeFileWriter(self.recording / f"{name}{SUFFIX}")

    def finish(self, path: Path) -> None:
        """The file is whole, closed, and may be sent."""
        os.replace(path, self.ready / path.name)
        for folder in (self.ready, self.recording):
            _flush(folder)

    def waiting(self) -> list[Path]:
        """What the server does not have yet, in order."""
        return sorted(self.ready.glob(f"*{SUFFIX}"))

    def close(self) -> None:
        self._lock.close()


class Uploader:
    """Sends what is in a spool, in the background; a server that is gone is waited for.

    report: called with a line where an episode is refused for good.
    """

    def __init__(
        self,
        spool: Spool,
        connection: Connection,
        report: Callable[[str], None] = print,
        call_s: float = 20.0,
        pause_s: float = 0.2,
        most_pause_s: float = 10.0,
        piece_bytes: int = PIECE_BYTES,
    ):
        self.spool, self.connection, self.report = spool, connection, report
        self.call_s, self.pause_s, self.most_pause_s, self.piece_bytes = call_s, pause_s, most_pause_s, piece_bytes
        self._stub = rpc.EpisodesStub(connection.channel)
        self._ended = threading.Event()
        self.num_sent = self.num_refused = 0
        self._thread = threading.Thread(target=self._work, name="uploader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Until everything was sent; whether it was."""
        until = time.monotonic() + seconds
        while self.spool.waiting() and time.monotonic() < until:
            time.sleep(0.02)
        return not self.spool.waiting()

    def stop(self) -> None:
        """What was not sent stays in the spool."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self.call_s + 1)

    def _work(self) -> None:
        pause = self.pause_s
        while not self._ended.is_set():
            for path in self.spool.waiting():
                try:
                    self.send(path)
                    pause = self.pause_s
                except grpc.RpcError as error:
                    if code_of(error) in NEVER:
                        self._give_up(path, details_of(error))
                    else:
                        pause = min(2 * pause, self.most_pause_s)
                        break
                except OSError as error:
                    self.report(f"{path}: {error.strerror}")
                    break
            self._ended.wait(pause)

    def send(self, path: Path) -> None:
        """Bring one episode to the server. Raises grpc.RpcError where that is not possible now, or ever."""
        total, digest, name = path.stat().st_size, _sha256(path), path.name[: -len(SUFFIX)]
        state = self._ask(self._stub.State, pb.UploadName(id=name, sha256=digest))
        with open(path, "rb") as file:
            while not state.complete and not self._ended.is_set():
                file.seek(state.received_bytes)
                piece = pb.UploadPiece(
                    id=name,
                    sha256=digest,
                    total_bytes=total,
                    offset=state.received_bytes,
                    data=file.read(self.piece_bytes),
                )
                state = self._ask(self._stub.Put, piece)
        if state.complete:
            self.num_sent += 1  # first: who waits until the spool is empty reads it then
            path.unlink()
            _flush(path.parent)

    def _ask(self, method: Any, request: Any) -> Any:
        return self.connection.call_again(method, request, self.call_s, self.call_s, self._ended.is_set)

    def _give_up(self, path: Path, reason: str) -> None:
        self.report(f"the server refuses {path.name}: {reason}; it stays in {self.spool.refused}")
        self.num_refused += 1
        os.replace(path, self.spool.refused / path.name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
