"""A fixed group of processes in which one broadcasts weights to the others, over gloo or NCCL.

The group is made by hand from a store, without `torch.distributed.init_process_group`: a process can then be in several
of them, one after the other, and in one of its own besides.
"""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wmpo_ray.policies.weight_payload import BroadcastError, WeightPayload, array_specs, pack, unpack

SENDER = 0  # rank
PIECE_BYTES = 256 * 2**20  # of one broadcast; bounds the memory on a GPU


@dataclass(frozen=True)
class GroupSpec:
    """Everything that a process needs to join the group; every change of members creates a new generation."""

    generation: int
    host: str  # of the store
    port: int
    size: int  # the sender and the receivers
    backend: Literal["gloo", "nccl"]
    timeout_s: float  # for joining, and for each piece of a broadcast


class BroadcastGroup:
    """Membership of this process in a group. Raises BroadcastError if the others do not join within `timeout_s`."""

    def __init__(self, spec: GroupSpec, rank: int):
        self.spec = spec
        self._device = torch.device("cuda" if spec.backend == "nccl" else "cpu")
        timeout = timedelta(seconds=spec.timeout_s)
        try:
            store = dist.TCPStore(spec.host, spec.port, is_master=False, wait_for_workers=False, timeout=timeout)
            prefixed = dist.PrefixStore(f"weights/{spec.generation}", store)
            make = _make_nccl if spec.backend == "nccl" else _make_gloo
            self._group: Any = make(prefixed, rank, spec, timeout)
        except RuntimeError as error:  # torch has no narrower class for a missing peer
            raise BroadcastError(
                f"group {spec.generation} of {spec.size} did not form within weights.timeout_s={spec.timeout_s:g}: "
                f"{error}"
            ) from error

    def send(self, payload: WeightPayload) -> None:
        """Send to all others: the description first, then one bucket of bytes for each dtype, in pieces."""
        header, arrays = pack(payload)
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        self._broadcast(np.array([len(text)], np.int64).view(np.uint8))
        self._broadcast(text)
        for members in _by_dtype([array.dtype.name for array in arrays]).values():
            self._broadcast(np.concatenate([arrays[i] for i in members]).view(np.uint8))

    def receive(self) -> WeightPayload:
        """Receive from the sender. Raises BroadcastError if the sender or a relaying peer is lost or too slow."""
        length = int(self._broadcast(np.empty(8, np.uint8)).view(np.int64)[0])
        header = json.loads(self._broadcast(np.empty(length, np.uint8)).tobytes())
        specs = array_specs(header)
        arrays: dict[int, np.ndarray] = {}
        for dtype, members in _by_dtype([dtype for dtype, _ in specs]).items():
            lengths = [specs[i][1] for i in members]
            bucket = np.empty(sum(lengths), dtype)
            self._broadcast(bucket.view(np.uint8))
            arrays |= zip(members, np.split(bucket, np.cumsum(lengths)[:-1]), strict=True)
        return unpack(header, [arrays[i] for i in range(len(specs))])

    def _broadcast(self, data: np.ndarray) -> np.ndarray:
        """Bytes [n]: read by the sender, filled in place by the receivers."""
        if self._group is None:
            raise BroadcastError(f"group {self.spec.generation} was left")
        sends = self._group.rank() == SENDER
        try:
            for piece in _pieces(data, writable=not sends):
                moved = piece.to(self._device)
                self._group.broadcast([moved], _from_sender()).wait()
                if not sends and moved is not piece:
                    piece.copy_(moved)
        except RuntimeError as error:  # torch has no narrower class for a lost peer
            self.close()  # so that peers waiting for this process fail at once
            raise BroadcastError(f"group {self.spec.generation}: a broadcast was cut off: {error}") from error
        return data

    def close(self) -> None:
        """Close the connections; peers that still wait for this process get an error."""
        if self._group is not None:
            self._group.abort()  # NCCL
            self._group = None  # gloo closes its connections with the last reference


def open_store(host: str) -> tuple[Any, int]:
    """A store that listens at `host` only, and its port; the process that holds it must outlive the groups."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def _make_gloo(store: Any, rank: int, spec: GroupSpec, timeout: timedelta) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its options are not in torch's type stubs
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=_own_address(spec.host))]
    options._timeout = timeout
    return gloo(store, rank, spec.size, options)


def _make_nccl(store: Any, rank: int, spec: GroupSpec, timeout: timedelta) -> Any:
    # Without it a lost peer terminates this process too, instead of raising.
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, spec.size, options)


def _own_address(peer: str) -> str:
    """The address of this machine that `peer` can be reached from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # a datagram socket sends nothing here; the kernel picks the route
        return probe.getsockname()[0]


def _from_sender() -> Any:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = SENDER, 0
    return options


def _by_dtype(names: Sequence[str]) -> dict[str, list[int]]:
    """dtype -> places, both in the order of first appearance: the same on every rank."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        places[name].append(i)
    return places


def _pieces(data: np.ndarray, writable: bool) -> Iterator[Tensor]:
    for first in range(0, len(data), PIECE_BYTES):
        piece = data[first : first + PIECE_BYTES]
        yield torch.from_numpy(piece if writable or piece.flags.writeable else piece.copy())
