"""The robots that have said hello. The table is bounded: who never acted goes first, who acts stays."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from wmpo_client.refusals import Refusal


@dataclass
class Session:
    robot: str
    episode: int = 0
    first: int = 0  # sequence number of the last question before the episode
    last: int = 0  # sequence number of the newest question
    reply: asyncio.Future[Any] | None = None  # to the newest question
    used: float = field(default_factory=time.monotonic)


class SessionTable:
    """At most `most` sessions. One that acted is kept for `idle_s` after its last question."""

    def __init__(self, most: int = 1024, idle_s: float = 600.0):
        self.most, self.idle_s = most, idle_s
        self._quiet: OrderedDict[str, Session] = OrderedDict()  # have not acted, the oldest first
        self._acting: OrderedDict[str, Session] = OrderedDict()  # who has not asked for longest first

    def __len__(self) -> int:
        return len(self._quiet) + len(self._acting)

    def open(self, robot: str) -> str:
        """The name of a new session. Raises Refusal where all places are taken by robots that act."""
        if len(self) >= self.most:
            self._make_room()
        name = secrets.token_hex(16)
        self._quiet[name] = Session(robot)
        return name

    def find(self, name: str) -> Session:
        session = self._quiet.get(name) or self._acting.get(name)
        if session is None:
            raise Refusal("NOT_FOUND", "no_session", "no such session: say Hello again")
        return session

    def note_act(self, name: str) -> Session:
        """The session, which acts now."""
        session = self.find(name)
        self._quiet.pop(name, None)
        self._acting[name] = session
        self._acting.move_to_end(name)
        session.used = time.monotonic()
        return session

    def close(self, name: str) -> None:
        """Forget a robot that has left."""
        self._quiet.pop(name, None)
        self._acting.pop(name, None)

    def _make_room(self) -> None:
        if self._quiet:
            self._quiet.popitem(last=False)
            return
        name, oldest = next(iter(self._acting.items()))
        if time.monotonic() - oldest.used < self.idle_s:
            raise Refusal("RESOURCE_EXHAUSTED", "sessions", f"{self.most} robots act already, and no more are taken")
        del self._acting[name]
