"""openpi's protocol beside ours: a WebSocket for each robot, which its published client opens.

The server sends a map that describes the policy, then answers every observation with `{"actions": [K, D] float32, ...}`,
or with a text that says why not. `/healthz` answers as openpi's does. The token comes as `Authorization: Api-Key TOKEN`
(`api_key` of the client) or as `Bearer`, is compared before the connection becomes one, and is asked of everybody.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from wmpo_client.refusals import ClientError, Refusal, bad
from wmpo_client.serving.locked_server import Bounds, Lock, check_door
from wmpo_ray.remote.act_batcher import Answer
from wmpo_ray.remote.openpi_messages import observation_of, pack, unpack
from wmpo_ray.remote.policy_service import MAX_ANSWER_S, PolicyService

LOG = logging.getLogger(__name__)
HEALTH = "/healthz"
ROBOT = "openpi"  # these clients send no name
TOO_LARGE = 1009  # of WebSocket's codes


class OpenpiServer:
    """Needs a running event loop. count: called with the reason of every refusal."""

    def __init__(self, service: PolicyService, lock: Lock, bounds: Bounds, count: Callable[[str], None]):
        self.service, self.lock, self.bounds, self._count = service, lock, bounds, count
        self._num_connections = 0
        self._server: Any = None

    async def start(self, listen: str) -> int:
        """Listen on HOST:PORT; returns the port. Beyond loopback only with TLS and a token. Raises ClientError."""
        host, port = check_door(listen, self.lock, "--openpi")
        most, there = self.bounds.connections, set[ServerConnection]()

        class Bounded(ServerConnection):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                there.add(self)
                if len(there) > most:
                    transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                there.discard(self)
                super().connection_lost(exc)

        quiet = logging.getLogger(f"{__name__}.connections")
        quiet.setLevel(logging.CRITICAL)  # a line for each stranger at the door would fill the disk
        try:
            self._server = await serve(
                self._talk,
                host.strip("[]"),
                port,
                ssl=tls_of(self.lock),
                process_request=self._admit,
                create_connection=Bounded,
                compression=None,
                max_size=self.bounds.message_bytes,
                max_queue=1,  # whole messages that wait in memory
                open_timeout=self.bounds.message_s,
                logger=quiet,
                server_header=None,
            )
        except OSError as error:
            raise ClientError(f"--openpi {listen} cannot be had: {error.strerror}; choose another") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _admit(self, connection: ServerConnection, request: Any) -> Any:
        given = [each.encode() for each in request.headers.get_all("Authorization")]
        wanted = [f"{kind} {self.lock.token}".encode() for kind in ("Api-Key", "Bearer")]
        if len(given) != 1 or not any(hmac.compare_digest(given[0], each) for each in wanted):
            self._count("token")
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no token, or a wrong one\n")
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        """All questions of one robot, one after the other."""
        self._num_connections += 1
        try:
            robot = _Robot(self.service, self._num_connections)
        except Refusal as refusal:
            self._count(refusal.reason)
            await connection.close(1013, str(refusal))
            return
        try:
            await connection.send(pack(self._metadata()))
            while True:
                message = await asyncio.wait_for(connection.recv(), self.bounds.silence_s)
                await connection.send(await self._answer(robot, message))
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == TOO_LARGE:
                self._count("too_large")
        except TimeoutError:
            self._count("silent")
        finally:
            robot.leave()

    def _metadata(self) -> dict[str, Any]:
        facts, version = self.service.facts, self.service.version
        return {
            "chunk_length": facts.chunk_length,
            "action_dims": facts.action_dim,
            "frame_height": facts.frame_shape[0],
            "frame_width": facts.frame_shape[1],
            "instructions": list(facts.instructions),
            "policy_version": {"num_updates": version.num_updates, "digest": version.digest},
        }

    async def _answer(self, robot: _Robot, message: str | bytes) -> str | bytes:
        """The actions; text says why there are none, and the robot may ask something else."""
        began = time.monotonic()
        try:
            if isinstance(message, str):
                raise bad("a text; a message of openpi's protocol is bytes")
            answer = await robot.ask(unpack(message))
        except Exception as error:  # every question is answered
            if not isinstance(error, Refusal):
                LOG.error("a question ended with %s", type(error).__name__, exc_info=error)
                error = Refusal("INTERNAL", "internal", f"{type(error).__name__}; the server's log says more")
            self._count(error.reason)
            return str(error)
        version = answer.version
        return pack(
            {
                "actions": answer.actions.astype("<f4"),
                "policy_version": {"num_updates": version.num_updates, "digest": version.digest},
                "server_timing": {
                    "infer_ms": 1000 * (time.monotonic() - began),
                    "queued_ms": 1000 * answer.queued_s,
                    "policy_ms": 1000 * answer.policy_s,
                },
            }
        )


class _Robot:
    """A session like any other; every connection is an episode of its own, since these clients name none."""

    def __init__(self, service: PolicyService, episode: int):
        self.service, self._episode, self._num_asked = service, episode, 0
        self._name = service.sessions.open(ROBOT)

    async def ask(self, message: dict[Any, Any]) -> Answer:
        seen = observation_of(message, self.service.facts.instructions)
        session = self.service.sessions.note_act(self._name)
        session.episode, self._num_asked = self._episode, self._num_asked + 1
        return await self.service.decide(self._name, session, self._num_asked, seen, MAX_ANSWER_S)

    def leave(self) -> None:
        self.service.sessions.close(self._name)


def tls_of(lock: Lock) -> ssl.SSLContext | None:
    """None where the lock has no certificate. Raises ClientError for files that are none."""
    if lock.certificate is None:
        return None
    if lock.key is None:
        raise ClientError("--tls-certificate needs --tls-key, the file of its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(lock.certificate, lock.key)
        if lock.client_ca is not None:
            context.load_verify_locations(lock.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ClientError(f"{lock.certificate}: {error}; no certificate with its key and authority") from error
    return context
