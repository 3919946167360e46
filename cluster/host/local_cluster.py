"""A Ray cluster of several nodes as processes of this machine: with a token, on 127.0.0.1 only, ended with its owner.

For trying what a real cluster does: `ray job submit`, several nodes, the dashboard.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Self
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from cluster.host.connection import start_nodes
from cluster.host.ports import LOCALHOST, free_port, require_free
from cluster.host.preflight import check_temporary_folder, require, temporary_folder

PREFIX = "wmpo-ray-"
FOLDER_PATTERN = f"{PREFIX}12345678"  # what tempfile makes of it
OBJECT_STORE_BYTES = 200 * 2**20  # a node; the embedded task's trajectories are kilobytes


class LocalCluster:
    """A head, which runs drivers only, and worker nodes that share the machine's CPUs. Use it as a context manager.

    `prepare_ray("")` has to be called before this module is imported.
    """

    def __init__(self, num_workers: int = 2, cpus_per_worker: float | None = None, dashboard_port: int = 0):
        # A job's `python` is the one on the PATH of the node it runs on.
        bin_folder = str(Path(sys.executable).parent)
        if bin_folder not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = bin_folder + os.pathsep + os.environ["PATH"]
        port = dashboard_port or free_port()
        require_free(port)
        logging.getLogger("ray").setLevel(logging.WARNING)
        # A folder of its own: it is by a file in it that jobs find their cluster.
        base = temporary_folder().absolute()
        require([check_temporary_folder(base / FOLDER_PATTERN)])
        base.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=base, ignore_cleanup_errors=True)
        self.temp_dir = Path(self._folder.name) / "ray"
        cpus = cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // num_workers)
        try:
            start_nodes(lambda: self._start(port, num_workers, cpus))
        except BaseException:
            self._folder.cleanup()
            raise
        self.address: str = self._cluster.address  # for drivers
        self.dashboard = f"http://{LOCALHOST}:{port}"  # for jobs and people

    def _start(self, port: int, num_workers: int, cpus: float) -> None:
        head = {
            "temp_dir": str(self.temp_dir),
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_host": LOCALHOST,
            "dashboard_port": port,
            # Not Ray's default port: while another Ray uses it, no agent here would accept jobs.
            "dashboard_agent_listen_port": free_port(),
        }
        # Ray writes the head's address, by which jobs find it, to the temporary folder of the environment: in its
        # default one, which need not exist, it would take the place of another cluster's.
        with mock.patch.dict(os.environ, RAY_TMPDIR=self._folder.name):
            self._cluster = Cluster(initialize_head=True, head_node_args=head | _SMALL)
        for number in range(num_workers):
            node: dict[str, Any] = {"num_cpus": cpus, "dashboard_agent_listen_port": free_port()}
            # Ray unpacks a job's working directory anew for every node. In one folder for all nodes, as is its default
            # on one machine, files would be missing under a running job for as long as that takes.
            node["runtime_env_dir_name"] = f"runtime_resources_{number}"
            self._cluster.add_node(wait=False, **node, **_SMALL)
        self._cluster.wait_for_nodes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes of this cluster, and no others."""
        if ray.is_initialized():
            ray.shutdown()
        self._cluster.shutdown()
        self._folder.cleanup()


_SMALL = {"object_store_memory": OBJECT_STORE_BYTES}
