"""A Ray cluster on this machine whose nodes, head and actors can be ended without a warning.

Its GCS keeps its tables in RocksDB, as a head that is to survive its own end does, and dead nodes are noticed within
three seconds instead of fourteen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from ray.cluster_utils import Cluster

from cluster.host.ray_private import Node, drain_node, raylet_pid, read_ray_address, reset_ray_address

# Any loopback address but 127.0.0.1, which Ray's drivers take for "this machine" and turn into its outer address.
NODE_IP = "127.0.0.2"
WARM_BYTES = 350 * 2**20  # of a process that has imported torch, transformers and diffusers; an idle worker has 80 MiB
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class CrashableCluster:
    """`with` starts the head and ends every process of the cluster.

    Args:
        num_cpus: of the head
        nodes: beside the head, each with `node_cpus` and `labels`
        environment: added to the environment of the processes, while the cluster stands also to that of this process
    """

    def __init__(
        self,
        num_cpus: float,
        nodes: int,
        node_cpus: float,
        labels: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
    ):
        self._num_cpus, self._num_nodes, self._node_cpus, self._labels = num_cpus, nodes, node_cpus, dict(labels)
        self._added = dict(environment or {})
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="gcs-"))
        storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self._folder)}
        for key, value in (HEALTH_CHECKS | storage | self._added).items():
            self._before[key] = os.environ.get(key)
            os.environ[key] = value
        self._cluster = Cluster()
        # The GCS ends with the thread that started it: one that stays.
        self._starter = ThreadPoolExecutor(1)
        try:
            self._cluster.add_node(num_cpus=self._num_cpus, include_dashboard=False, node_ip_address=NODE_IP)
            for _ in range(self._num_nodes):
                self.add_node()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        address = self._cluster.address
        self._cluster.shutdown()
        self._starter.shutdown()
        if address and read_ray_address() == address:
            reset_ray_address()  # nobody else is to look for this cluster
        for key, value in self._before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def nodes(self) -> list[Node]:
        """All but the head, the oldest first."""
        return sorted(self._cluster.worker_nodes, key=raylet_pid)

    @property
    def all_nodes(self) -> list[Node]:
        return self._cluster.list_all_nodes()

    def add_node(self) -> Node:
        """Another one beside the head; returns once it is there."""
        return self._cluster.add_node(num_cpus=self._node_cpus, labels=self._labels, node_ip_address=NODE_IP)

    def crash_node(self, node: Node) -> None:
        """Kill the node's raylet; its actors go with it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def drain_node(self, node: Node, seconds: float) -> None:
        """What a cloud does before it takes a spot machine back. Raises RuntimeError if the GCS does not accept it."""
        drain_node(self.address, node.node_id, int((time.time() + seconds) * 1000))

    def restart_gcs(self, away_s: float) -> Future[None]:
        """Kill the GCS now and start it again after a while; resolves when that is done."""
        self._cluster.head_node.kill_gcs_server()

        def start() -> None:
            time.sleep(away_s)
            self._cluster.head_node.start_gcs_server()

        return self._starter.submit(start)

    def actors(self, cls: str) -> list[int]:
        """Process ids of the living actors of a class, such as "RolloutActor", on any node."""
        return [pid for node in self.all_nodes for pid in actors_of(node, cls)]


def actors_of(node: Node, cls: str) -> list[int]:
    """Process ids of the actors of a class on a node."""
    return [pid for pid, title in _children(raylet_pid(node)) if title.startswith(f"ray::{cls}")]


def num_spares(node: Node) -> int:
    """Processes of a node that wait for an actor and have imported its libraries."""
    return sum(
        title.startswith("ray::IDLE") and _resident(pid) > WARM_BYTES for pid, title in _children(raylet_pid(node))
    )


def _resident(pid: int) -> int:
    """Bytes of memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _children(parent: int) -> Iterator[tuple[int, str]]:
    """Living children of a process and their titles."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, ppid = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
            title = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state != "Z":
            yield int(name), title
