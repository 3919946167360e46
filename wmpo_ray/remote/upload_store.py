"""Files on their way in, piece by piece: whatever is repeated, comes twice or in another order, each is there once."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from wmpo_client.episode_file import MAX_EPISODE_BYTES
from wmpo_client.refusals import Refusal, bad
from wmpo_ray.core.files import flush, sha256_of
from wmpo_ray.core.section import shown
from wmpo_ray.remote.robot_episodes import ID, EpisodeFolder, read_episode

INCOMING, PART = "incoming", ".part"
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_PIECE_BYTES = 8 * 2**20
MAX_UNFINISHED = 1024  # files that are not whole yet
ABANDONED_S = 7 * 86400.0
RESERVE_BYTES = 2**29  # of the disk that uploads leave free
MAX_KNOWN = 100_000  # hashes that are kept in memory


class Piece(NamedTuple):
    id: str
    sha256: str  # of the whole file
    total_bytes: int
    offset: int
    data: bytes


class UploadState(NamedTuple):
    received_bytes: int
    is_complete: bool


class UploadStore:
    """Takes pieces for an `EpisodeFolder`. Calls for one id go one after the other; all may come from many threads."""

    def __init__(self, folder: EpisodeFolder):
        self.folder, self.incoming = folder, folder.root / INCOMING
        self.incoming.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._users: dict[str, tuple[threading.Lock, int]] = {}  # id -> its lock, and how many hold or want it
        self._known: OrderedDict[str, str] = OrderedDict()  # id of a whole file -> its SHA-256
        for path in self.incoming.glob(f"*{PART}"):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()

    def state(self, id: str, sha256: str) -> UploadState:
        """How far a file is. Raises Refusal for an id that is another file's."""
        self._check_name(id, sha256)
        with self._turn(id):
            return self._state(id, sha256)

    def put(self, piece: Piece) -> UploadState:
        """Take a piece if it begins where the file ends; a whole file is checked and becomes an episode.

        Raises Refusal: for good where the file is no episode, for now where the disk is full.
        """
        self._check_name(piece.id, piece.sha256)
        end = piece.offset + len(piece.data)
        if not 0 < piece.total_bytes <= MAX_EPISODE_BYTES or end > piece.total_bytes:
            raise bad(
                f"bytes {piece.offset} to {end} of {piece.total_bytes}; {MAX_EPISODE_BYTES} are the most of a file"
            )
        if not 0 < len(piece.data) <= MAX_PIECE_BYTES:
            raise bad(f"a piece of {len(piece.data)} bytes; it has 1 to {MAX_PIECE_BYTES}")
        with self._turn(piece.id):
            state = self._state(piece.id, piece.sha256)
            if state.is_complete or state.received_bytes != piece.offset:
                return state
            part = self._part(piece.id, piece.sha256)
            self._append(part, piece)
            if end < piece.total_bytes:
                return UploadState(end, False)
            return self._finish(part, piece)

    def _state(self, id: str, sha256: str) -> UploadState:
        whole = self.folder.path(id)
        if whole.exists():
            if self._hash_of(id, whole) != sha256:
                raise Refusal("ALREADY_EXISTS", "id_taken", f"another episode is called {id}")
            return UploadState(whole.stat().st_size, True)
        part = self._part(id, sha256)
        return UploadState(part.stat().st_size if part.exists() else 0, False)

    def _append(self, part: Path, piece: Piece) -> None:
        if not part.exists() and sum(1 for _ in self.incoming.iterdir()) >= MAX_UNFINISHED:
            raise Refusal("RESOURCE_EXHAUSTED", "unfinished", f"{MAX_UNFINISHED} episodes are on their way already")
        if shutil.disk_usage(self.incoming).free - len(piece.data) < RESERVE_BYTES:
            raise Refusal("RESOURCE_EXHAUSTED", "disk_full", "the disk is full")
        try:
            with open(part, "ab") as file:
                file.write(piece.data)
        except OSError as error:
            if part.exists():
                os.truncate(part, piece.offset)  # half of a piece must not count
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refusal("RESOURCE_EXHAUSTED", "disk_full", "the disk is full") from error
            raise

    def _finish(self, part: Path, piece: Piece) -> UploadState:
        if part.stat().st_size != piece.total_bytes or sha256_of(part) != piece.sha256:
            part.unlink()  # the machine went down while it was written, or somebody sent something else: from the start
            return UploadState(0, False)
        try:
            read_episode(part)
        except Refusal:
            part.unlink()
            raise
        flush(part)
        os.replace(part, self.folder.path(piece.id))
        flush(self.folder.received)
        self._remember(piece.id, piece.sha256)
        return UploadState(piece.total_bytes, True)

    def _part(self, id: str, sha256: str) -> Path:
        return self.incoming / f"{id}-{sha256[:16]}{PART}"

    def _hash_of(self, id: str, path: Path) -> str:
        if id not in self._known:
            self._remember(id, sha256_of(path))
        return self._known[id]

    def _remember(self, id: str, sha256: str) -> None:
        self._known[id] = sha256
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _check_name(self, id: str, sha256: str) -> None:
        if not ID.fullmatch(id) or not SHA256.fullmatch(sha256):
            raise bad(f"an episode called {shown(id)} with the hash {shown(sha256)}: neither is one")

    @contextmanager
    def _turn(self, id: str) -> Iterator[None]:
        """Hold the lock of one id, which goes when nobody wants it any more."""
        with self._guard:
            lock, users = self._users.get(id, (threading.Lock(), 0))
            self._users[id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._users.pop(id)
                if users > 1:
                    self._users[id] = (lock, users - 1)
