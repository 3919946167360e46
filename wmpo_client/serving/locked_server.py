"""What every server of ours has: a lock, bounds, and counted refusals.

The token is asked for before a message is read, of every service: health and reflection too. A message must come soon
after its call has begun, and is bounded before memory is taken for it. So who has no token, or only half a message, holds
nothing but a connection, and of those there are not more than `Bounds.connections`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import grpc
from google.protobuf.message import DecodeError

from wmpo_client.refusals import ClientError, Refusal
from wmpo_client.server_connection import is_loopback, split_target

LOG = logging.getLogger(__name__)
Count = Callable[[str], None]


@dataclass(frozen=True)
class Bounds:
    message_bytes: int = 16 * 2**20  # of a request; an answer may have four times as many
    calls: int = 512  # at a time, of all robots together
    connections: int = 1024
    calls_of_connection: int = 64
    message_s: float = 10.0  # from the beginning of a call to the end of its message
    call_s: float = 60.0  # of a call that is no stream
    silence_s: float = 600.0  # between two messages of a stream

    def options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", 4 * self.message_bytes),
            ("grpc.max_concurrent_streams", self.calls_of_connection),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_metadata_size", 8192),
            ("grpc.absolute_max_metadata_size", 16384),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 3),
            ("grpc.so_reuseport", 0),
        ]


@dataclass(frozen=True)
class Lock:
    """Who may come in. certificate, key: files of the server's own, None: no TLS. client_ca: whose certificates it asks for."""

    token: str
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class Refusals:
    """How often what was refused, by name."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts: Counter[str] = Counter()

    def __call__(self, reason: str) -> None:
        with self._guard:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        with self._guard:
            return dict(self._counts)


class Gate(grpc.aio.ServerInterceptor):
    """Asks every call for the token, decodes its message, and turns a `Refusal` into its status code."""

    def __init__(self, token: str, bounds: Bounds, count: Count):
        self._wanted, self._bounds, self._count = f"Bearer {token}".encode(), bounds, count
        # A handler of streams is called before any message is read.
        self._closed = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = [value for key, value in details.invocation_metadata if key == "authorization"]
        if len(given) != 1 or not hmac.compare_digest(_bytes(given[0]), self._wanted):
            return self._closed
        handler = await continuation(details)
        if handler is None:
            self._count("unknown_method")
        elif handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._of_one(handler), None, handler.response_serializer)
        elif handler.stream_stream is not None and handler.stream_stream.__module__.startswith("wmpo"):
            return grpc.stream_stream_rpc_method_handler(self._of_many(handler), None, handler.response_serializer)
        return handler

    async def _refuse(self, messages: Any, context: Any) -> None:
        self._count("token")
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token, or a wrong one")

    def _of_one(self, handler: Any) -> Any:
        async def answer(messages: AsyncIterator[bytes], context: Any) -> Any:
            try:
                request = await self._next(messages, handler.request_deserializer, self._bounds.message_s)
                if request is None:
                    raise Refusal("INVALID_ARGUMENT", "no_message", "a call without a message")
                return await asyncio.wait_for(handler.unary_unary(request, context), self._bounds.call_s)
            except Exception as error:  # noqa: BLE001  every call ends with a status code
                await self._abort(context, error)

        return answer

    def _of_many(self, handler: Any) -> Any:
        async def decoded(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            while True:
                request = await self._next(messages, handler.request_deserializer, self._bounds.silence_s)
                if request is None:
                    return
                yield request

        async def answer(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            try:
                async for reply in handler.stream_stream(decoded(messages), context):
                    yield reply
            except Exception as error:  # noqa: BLE001  every call ends with a status code
                await self._abort(context, error)

        return answer

    async def _next(self, messages: Any, decode: Callable[[bytes], Any], seconds: float) -> Any:
        """The next message; None after the last one. Raises Refusal."""
        try:
            data = await asyncio.wait_for(messages.__anext__(), seconds)
        except StopAsyncIteration:
            return None
        except asyncio.TimeoutError:
            raise Refusal("DEADLINE_EXCEEDED", "slow_message", f"no message within {seconds:g} s") from None
        try:
            return decode(data)
        except (DecodeError, ValueError, RecursionError):
            raise Refusal("INVALID_ARGUMENT", "malformed", "no message of this call") from None

    async def _abort(self, context: Any, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, asyncio.TimeoutError):
            error = Refusal("DEADLINE_EXCEEDED", "slow_call", f"not done within {self._bounds.call_s:g} s")
        if not isinstance(error, Refusal):
            LOG.error("a call ended with %s", type(error).__name__, exc_info=error)
            error = Refusal("INTERNAL", "internal", f"{type(error).__name__}; the server's log says more")
        self._count(error.reason)
        await context.abort(grpc.StatusCode[error.code], str(error))


def make_server(lock: Lock, bounds: Bounds, count: Count) -> grpc.aio.Server:
    """A server without services; needs a running event loop."""
    return grpc.aio.server(
        interceptors=(Gate(lock.token, bounds, count),),
        options=bounds.options(),
        maximum_concurrent_rpcs=bounds.calls,
    )


def check_door(listen: str, lock: Lock, knob: str = "--listen") -> tuple[str, int]:
    """(host, port) to bind. Raises ClientError without a token, and beyond loopback without TLS."""
    host, port = split_target(listen, knob)
    if not lock.token:
        raise ClientError("a server listens only with a token")
    if lock.certificate is None and not is_loopback(host):
        raise ClientError(
            f"{knob} {listen} can be reached from other machines, and without TLS the token would be read on the way; "
            "give --tls-certificate and --tls-key, or listen on 127.0.0.1"
        )
    return host, port


def open_door(server: grpc.aio.Server, listen: str, lock: Lock) -> int:
    """Bind HOST:PORT, port 0: a free one; returns the port. Beyond loopback only with TLS. Raises ClientError."""
    host, port = check_door(listen, lock)
    try:
        if lock.certificate is not None:
            bound = server.add_secure_port(f"{host}:{port}", _credentials(lock))
        else:
            bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ClientError(
            f"--listen {listen} cannot be had: is it taken, or no address of this machine? Choose another"
        )
    return bound


async def add_health_and_reflection(server: grpc.aio.Server, services: list[str]) -> None:
    """The standard services, where their packages are installed; behind the token like all others."""
    try:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_health.v1._async import HealthServicer
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        return
    health = HealthServicer()
    for name in ("", *services):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)


def _credentials(lock: Lock) -> grpc.ServerCredentials:
    if lock.key is None:
        raise ClientError("--tls-certificate needs --tls-key, the file of its key")
    pair = (_read(lock.key), _read(lock.certificate))
    authority = _read(lock.client_ca) if lock.client_ca else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _read(path: Any) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
