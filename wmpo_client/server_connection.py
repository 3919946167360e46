"""A connection to a server: address, TLS, token, deadlines, and what is tried again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TypeVar

import grpc

from wmpo_client.refusals import ClientError
from wmpo_client.token_file import read_token

Reply = TypeVar("Reply")
MAX_MESSAGE_BYTES = 256 * 2**20  # of an answer
# A server that is gone, that is starting, or that has no room: the same question may be asked again. What was cut on its
# way shows as UNAVAILABLE, CANCELLED, or UNKNOWN where the stream ended in the middle.
AGAIN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED")
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # only those below, which know what may be asked twice
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Address:
    """Where a server is and how it is reached.

    target: HOST:PORT. ca: file of the authority whose certificate the server shows; None: no TLS, for loopback alone.
    certificate, key: files of this client's own, where the server asks for one.
    """

    target: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None  # None: that of this user


class Connection:
    """Calls with a deadline and the token. Raises ClientError for files that cannot be read."""

    def __init__(self, address: Address):
        self.address = address
        self._metadata = (("authorization", f"Bearer {address.token or read_token()}"),)
        if address.ca is None:
            _require_loopback(address.target)
            self.channel = grpc.insecure_channel(address.target, OPTIONS)
        else:
            self.channel = grpc.secure_channel(address.target, _credentials(address), OPTIONS)

    def call(self, method: Callable[..., Reply], request: Any, timeout_s: float) -> Reply:
        """One attempt. Raises grpc.RpcError."""
        return method(request, timeout=timeout_s, metadata=self._metadata)

    def call_again(
        self,
        method: Callable[..., Reply],
        request: Any,
        timeout_s: float,
        patience_s: float,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The same question until it is answered, for `patience_s` at most, with pauses that grow; for what may be repeated.

        Raises the last grpc.RpcError.
        """
        until, pause = time.monotonic() + patience_s, 0.05
        while True:
            try:
                return self.call(method, request, timeout_s)
            except grpc.RpcError as error:
                left = until - time.monotonic()
                if code_of(error) not in AGAIN or left <= 0 or is_over():
                    raise
                time.sleep(min(left, pause * (0.5 + random.random())))
                pause = min(2 * pause, 2.0)

    def close(self) -> None:
        self.channel.close()


def code_of(error: grpc.RpcError) -> str:
    """The name of its status code."""
    code = error.code() if hasattr(error, "code") else None
    return code.name if code is not None else "UNKNOWN"


def details_of(error: grpc.RpcError) -> str:
    return f"{code_of(error)}: {error.details() if hasattr(error, 'details') else error}"


def is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_target(target: str, knob: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT. Raises ClientError, which names the knob."""
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ClientError(f"{knob} = {target[:80]!r}: HOST:PORT is asked for, such as 127.0.0.1:7410")
    return host, int(port)


def _require_loopback(target: str) -> None:
    host, _ = split_target(target, "address")
    if not is_loopback(host):
        raise ClientError(
            f"{target} is not on this machine, and without TLS the token and the pictures would be read on the way; name "
            "the file of the server's authority (--ca)"
        )


def _credentials(address: Address) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        _read(address.ca), _read(address.key) if address.key else None, _read(address.certificate)
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error
