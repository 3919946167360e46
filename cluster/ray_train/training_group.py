"""How the workers of a training find each other: at a store that listens where its node is reached, and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

from actors.broadcast_group import open_store
from cluster.host.ray_private import TorchBackend

LOOPBACK = "127."


@dataclass
class OwnAddressConfig(TorchConfig):
    """Ray's own lets the store listen on every interface of the machine; this one on the address of its node."""

    @property
    def backend_cls(self) -> type:
        return _OwnAddressBackend


class _OwnAddressBackend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        host, port = worker_group.execute_single(0, _open_store)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, host, port, rank, size, backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )


_STORES: list[Any] = []  # of this worker: a store ends with its last reference


def _open_store() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    store, port = open_store(host)
    _STORES.append(store)
    return host, port


def _join(backend: str, host: str, port: int, rank: int, size: int, timeout_s: float) -> None:
    if host.startswith(LOOPBACK):
        # Where gloo and NCCL listen, unless they are told, follows from the name of the machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
