"""A network between a client and a server that delays, cuts, duplicates and reorders, as its seed says.

It stands between the two as a server of its own, and forwards every single call as bytes. A call may be cut before the
server has heard of it or after it has answered, be made twice, or be made once more much later, when others have been made
in between; its answer then goes to nobody.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

MAX_BYTES = 256 * 2**20
OPTIONS = (("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES))


@dataclass(frozen=True)
class Faults:
    """Shares of calls, and the longest delay in seconds."""

    cut_before: float = 0.1
    cut_after: float = 0.1
    twice: float = 0.1
    late: float = 0.1
    delay_s: float = 0.01


class FaultyNetwork(grpc.GenericRpcHandler):
    """Forwards to `target` from a port of its own until it is closed; `counts` says what happened to calls."""

    def __init__(self, target: str, seed: int, faults: Faults = Faults()):
        self.faults, self.counts = faults, Counter[str]()
        self._random, self._guard = random.Random(seed), threading.Lock()
        self._late: list[tuple[str, bytes, Any]] = []
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(32), (self,), options=OPTIONS)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    def service(self, details: Any) -> Any:
        metadata = [pair for pair in details.invocation_metadata if pair[0] == "authorization"]

        def forward(data: bytes, context: Any) -> bytes:
            return self._forward(details.method, data, metadata, context)

        return grpc.unary_unary_rpc_method_handler(forward)

    def _forward(self, method: str, data: bytes, metadata: Any, context: Any) -> bytes:
        with self._guard:
            fault, delay = self._draw()
            overdue = self._late.pop(self._random.randrange(len(self._late))) if len(self._late) > 4 else None
            if fault == "late":
                self._late.append((method, data, metadata))
            self.counts[fault] += 1
        time.sleep(delay)
        if overdue is not None:
            self._call(*overdue)
        if fault == "cut_before":
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut before")
        found = [self._call(method, data, metadata) for _ in range(2 if fault == "twice" else 1)][-1]
        if fault == "cut_after":
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut after")
        if isinstance(found, grpc.RpcError):
            context.abort(found.code(), found.details())
        return found

    def _draw(self) -> tuple[str, float]:
        drawn, faults = self._random.random(), self.faults
        for name in ("cut_before", "cut_after", "twice", "late"):
            drawn -= getattr(faults, name)
            if drawn < 0:
                return name, self._random.random() * faults.delay_s
        return "none", self._random.random() * faults.delay_s

    def _call(self, method: str, data: bytes, metadata: Any) -> Any:
        try:
            return self._channel.unary_unary(method)(data, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error

    def close(self) -> None:
        self._server.stop(0).wait()
        for each in self._late:  # what was still on its way comes last
            self._call(*each)
        self._channel.close()
