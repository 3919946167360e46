"""The processes of a training on workers: connects the workers, and ends the controller with the training.

The workers' store listens on the address of its node only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import TorchConfig

from actors.broadcast_group import open_store
from cluster.host.ray_private import ControllerCallback, TorchBackend
from cluster.runtimes.ray_runtime import end_process

LOOPBACK = "127."
ABORT_WITHIN_S = 1.0


class RegisterController(ControllerCallback):
    """Runs in the controller of Ray Train: reports its handle and process to the board of the training."""

    def __init__(self, board: Any):
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        ray.get(self._board.register_controller.remote(ray.get_runtime_context().current_actor, os.getpid()))


def end_controller(board: Any, is_running: bool) -> None:
    """End the controller, which runs on this node, before its handle goes out of scope.

    Ray lets an actor that goes out of scope exit by itself. A controller that waits for workers to release its objects
    would then outlive the cluster. A running controller is asked to clean up first.
    """
    try:
        registered = ray.get(board.registered_controller.remote())
        if registered is None:
            return
        controller, pid = registered
        if is_running:
            ray.wait([controller.abort.remote()], timeout=ABORT_WITHIN_S)
        ray.kill(controller)
    except RayError:  # the board or the cluster is gone
        return
    end_process(pid)


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


_STORES: list[Any] = []  # a store closes with its last reference


def _open_store() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    store, port = open_store(host)
    _STORES.append(store)
    return host, port


def _join(backend: str, host: str, port: int, rank: int, size: int, timeout_s: float) -> None:
    if host.startswith(LOOPBACK):
        # By default gloo and NCCL choose their interface by the machine's host name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
