"""Time for an elastic run to get two nodes from the autoscaler, and until they are gone after it lets go of them.

The cluster is on this machine: a head without CPUs and Ray's provider of fake nodes, each node a process tree of its
own, bound to the loopback interface.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from benchmarks.results_file import write_results
from cluster.host.ports import free_port
from cluster.host.ray_private import FAKE_NODE_PROVIDER
from cluster.runtimes.resources import ray_options
from cluster.workers.elasticity import Autoscaler
from cluster.workers.placement import PlacementBook, Reservation, bundle_of
from wmpo_ray.config.run import Config

# Any loopback address but 127.0.0.1, which Ray's drivers take for "this machine" and turn into its outer address.
HEAD_IP = "127.0.0.2"
HEAD_ID = "f" * 51 + "00000"  # what the provider of fake nodes calls the head
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
WAIT_S = 60.0  # for the nodes to come or go
POLL_S = 0.1


class AutoscalingCluster:
    """A Ray cluster whose nodes come and go with what is asked; `with` starts it and ends every process of it.

    `ray.cluster_utils.AutoscalingCluster` cannot be used: it needs a file that the wheel lacks, and its start and its
    shutdown end every Ray on the machine.

    Args:
        worker: resources of one worker node, such as {"CPU": 1}
        max_workers: worker nodes at most
        idle_s: a worker node that is not needed goes after so long
        environment: added to the environment of every process
    """

    def __init__(
        self,
        worker: Mapping[str, float],
        max_workers: int,
        idle_s: float = 1.0,
        environment: Mapping[str, str] | None = None,
    ):
        self.address = f"{HEAD_IP}:{free_port(HEAD_IP)}"
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: paths of sockets have a limit
        self._settings = self._autoscaling_config(worker, max_workers, idle_s)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        settings = self._folder / "autoscaling.json"
        settings.write_text(json.dumps(self._settings))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--node-ip-address={HEAD_IP}", f"--port={self.address.split(':')[1]}"]
        command += [f"--ray-client-server-port={free_port(HEAD_IP)}", f"--autoscaling-config={settings}"]
        command += [f"--temp-dir={self._folder}", "--include-dashboard=false", "--disable-usage-stats"]
        with open(self._folder / "head.log", "wb") as log:
            self._process = subprocess.Popen(
                command, env=self._head_environment(), start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_started()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Living processes of this cluster: those of the head's session, which none of them leaves."""
        session = self._process.pid if self._process else -1
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _session_of(int(name)) == session]

    def close(self) -> None:
        """End what was started here: politely, then by force."""
        if self._process is None:
            return
        self._process.terminate()  # the head ends its children
        until = time.monotonic() + STOP_TIMEOUT_S
        while self.process_ids and time.monotonic() < until:
            self._process.poll()
            if self._process.returncode is not None:
                _kill(self.process_ids)  # nodes that the provider had started outlive it
            time.sleep(POLL_S)
        _kill(self.process_ids)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_started(self) -> None:
        assert self._process is not None
        log = self._folder / "head.log"
        until = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the head did not start:\n{log.read_text()[-2000:]}")
            time.sleep(POLL_S)

    def _head_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            # A driver that names an address does not switch to tokens by itself: both sides need the same.
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # worker nodes take the loopback interface, too
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            **self._environment,
        }

    def _autoscaling_config(self, worker: Mapping[str, float], max_workers: int, idle_s: float) -> dict[str, Any]:
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        node = {"resources": dict(worker), "node_config": {}, "min_workers": 0, "max_workers": max_workers}
        # "external" and not "fake_multinode": the defaults of the latter are in a file that the wheel lacks.
        provider = {"type": "external", "module": FAKE_NODE_PROVIDER, "gcs_address": self.address}
        return {
            "cluster_name": "fake",
            "max_workers": max_workers,
            "idle_timeout_minutes": idle_s / 60,
            "upscaling_speed": float(max_workers),
            "provider": {**provider, "launch_multiple": True, "head_node_id": HEAD_ID},
            "available_node_types": {"ray.head.default": head, "worker": node},
            "head_node_type": "ray.head.default",
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            **{f"{name}_commands": [] for name in COMMANDS},
        }


def _session_of(process_id: int) -> int | None:
    """Session of a process; None if it is gone, or dead and only not yet buried."""
    try:
        state, _, _, session = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(session)


def _kill(process_ids: list[int]) -> None:
    for process_id in process_ids:
        try:
            os.kill(process_id, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Worker:
    """Stands for an imagination actor: serving is to answer."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def num_workers() -> int:
    """Living nodes without the head."""
    return sum(node["Alive"] for node in ray.nodes()) - 1


def standing_request(address: str) -> list[tuple[dict[str, float], int]]:
    """What the autoscaler is asked to keep: (bundle, count) of each shape."""
    demands = get_cluster_status(address).resource_demands.cluster_constraint_demand
    return [(shape.bundle, shape.count) for demand in demands for shape in demand.bundles_by_count]


def measure(count: int = 2) -> dict[str, float]:
    """Start a cluster, scale 0 -> `count` -> 0 workers on nodes of their own, and end it.

    Returns:
        autoscale_up_s: from the request until `count` actors on as many nodes answer
        autoscale_down_s: from the withdrawal until the nodes are gone
        standing_requests: shapes that the autoscaler is still asked for at the end
    """
    config = Config.model_validate(
        {
            "cluster": {"imagination_actors": [0, count]},
            "placement": {"imagination": {"cpus": 1.0}, "learner": {"cpus": 0.0}, "reward": {"cpus": 0.0}},
        }
    )
    with AutoscalingCluster({"CPU": 1}, max_workers=count) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        autoscaler, book = Autoscaler(), PlacementBook(config, Reservation)
        try:
            started = time.monotonic()
            autoscaler.request([bundle_of(config, "imagination", i) for i in range(count)])
            places = [book.place("imagination", i) for i in range(count)]
            workers = [ray.remote(Worker).options(**ray_options(place)).remote() for place in places]
            nodes = set(ray.get([worker.node.remote() for worker in workers], timeout=WAIT_S))
            up_s = time.monotonic() - started
            assert len(nodes) == num_workers() == count
            started = time.monotonic()
            book.close()
            autoscaler.withdraw()
            _wait_for(lambda: num_workers() == 0, "the nodes stayed")
            down_s = time.monotonic() - started
            return {
                "autoscale_up_s": up_s,
                "autoscale_down_s": down_s,
                "standing_requests": float(len(standing_request(cluster.address))),
            }
        finally:
            book.close()
            autoscaler.withdraw()
            ray.shutdown()


def _wait_for(condition: Callable[[], bool], complaint: str) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{complaint} for {WAIT_S:g} s")
        time.sleep(POLL_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    units = {"autoscale_up_s": "s, 0 -> 2 nodes", "autoscale_down_s": "s, 2 -> 0 nodes", "standing_requests": "shapes"}
    figures = {name: {"value": value, "unit": units[name]} for name, value in measure().items()}
    path = write_results("autoscaling", figures, "python -m benchmarks.autoscaling")
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:.3g} {figure['unit']}")
    print(path)


if __name__ == "__main__":
    main()
