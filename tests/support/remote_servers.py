"""Servers of the tests, each in a thread with an event loop of its own, on free ports of 127.0.0.1."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

from wmpo_client.server_connection import Address, Connection
from wmpo_client.serving.environment_server import EnvironmentService, start_server
from wmpo_client.serving.locked_server import Lock, Refusals
from wmpo_ray.environments.pocket.env import PocketEnvironment

TOKEN = "a-token-of-the-tests-0123456789"


class Served:
    """A server that `start` brings up; `stop` ends it."""

    def __init__(self, start: Callable[[], Awaitable[tuple[Any, int]]]):
        self._start, self._loop = start, asyncio.new_event_loop()
        self.server, self.port = None, 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server, self.port = self.run(start())

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def connection(self, token: str = TOKEN) -> Connection:
        return Connection(Address(self.target, token=token))

    def stop(self) -> None:
        self.run(self.server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def serve_environment(
    make: Callable[[], Any],
    refusals: Refusals | None = None,
    lock: Lock | None = None,
    listen: str = "127.0.0.1:0",
    **options: Any,
) -> Served:
    service: list[EnvironmentService] = []

    async def start() -> tuple[Any, int]:
        service.append(EnvironmentService(make, **options))
        return await start_server(service[0], listen, lock or Lock(TOKEN), refusals)

    return Served(start)


@functools.cache
def _pocket(horizon: int) -> Served:
    return serve_environment(lambda: PocketEnvironment(horizon))


def pocket_address(horizon: int) -> str:
    """Of a simulator of the embedded task that is there until the tests end."""
    return _pocket(horizon).target
