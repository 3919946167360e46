"""Clusters that cannot be joined: each is one line within seconds, where Ray itself tries for minutes."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from benchmarks.soak_cluster import CrashableCluster
from cluster.host import connection
from cluster.host.connection import require_cluster, start_here
from cluster.host.local_cluster import LocalCluster
from cluster.host.ray_private import Node, hide_local_clusters
from cluster.runtimes.start import await_cluster, start_runtime
from wmpo_ray.core.errors import UserError


def test_auto_where_no_cluster_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        hide_local_clusters(),
        pytest.raises(UserError, match='no Ray cluster runs on this machine, so "auto" finds none; .*cluster.address'),
    ):
        require_cluster("auto")


def test_auto_where_the_last_cluster_has_ended(monkeypatch, tmp_path):
    """Its address stays in Ray's temporary folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ended = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(ended)
    with hide_local_clusters(), pytest.raises(UserError, match=f"nothing answers at {ended}.*RAY_ADDRESS"):
        require_cluster("auto")


def test_something_else_behind_the_port(monkeypatch):
    monkeypatch.setattr(connection, "PROBE_TIMEOUT_S", 0.5)
    quiet = type("Quiet", (BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
    with HTTPServer(("127.0.0.1", 0), quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=f":{server.server_port} is no Ray cluster.*6379"):
            require_cluster("auto")
        server.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379", "[::1]:1"])
def test_nobody_behind_the_address(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")  # yields to an address that is given
    with pytest.raises(UserError, match=re.escape(f"nothing answers at {address} ")):
        require_cluster(address)


def test_a_cluster_that_comes_back_is_awaited():
    """A driver is started again in the seconds in which the GCS is away: the machine that both stood on was lost."""
    with CrashableCluster(num_cpus=1, nodes=0, node_cpus=0, labels={}) as cluster:
        address = cluster.address  # it has none while it is away
        back = cluster.restart_gcs(away_s=2.0)
        with pytest.raises(UserError, match="nothing answers"):
            start_runtime(False, address)
        runtime = start_runtime(False, address, timeout_s=60)
        try:
            assert runtime.available["CPU"] == 1
        finally:
            runtime.shutdown()
            back.result()


def test_one_that_stays_away_is_said_once_and_named_at_the_end(caplog):
    with pytest.raises(UserError, match=r"nothing answers at 127.0.0.1:1 .*waited 1.2 s: faults.cluster_timeout_s"):
        await_cluster("127.0.0.1:1", timeout_s=1.2)
    (told,) = caplog.messages
    assert told.endswith("waiting for it up to 1.2 s (faults.cluster_timeout_s)")


def test_a_cluster_of_this_machine_needs_room_for_its_sockets(monkeypatch, tmp_path):
    folder = tmp_path / ("t" * 60)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(UserError, match="107 at most; set RAY_TMPDIR"):
        LocalCluster()
    assert not folder.exists()


def too_slow(start: Callable[[Node], None], error: Exception) -> Callable[[Node], None]:
    """Starts a node's processes, and the first time takes them for late, in the words of Ray."""
    late = iter([True])

    def start_processes(node: Node) -> None:
        start(node)
        if next(late, False):
            raise error

    return start_processes


def test_a_node_that_comes_up_too_slowly_is_started_again(monkeypatch, leftovers):
    late = TimeoutError("The current node timed out during startup.")
    monkeypatch.setattr(Node, "start_ray_processes", too_slow(Node.start_ray_processes, late))
    start_here(num_cpus=1)
    try:
        assert ray.is_initialized()
        assert len(leftovers.remaining(command="gcs_server")) == 1, "nothing of the first one runs on"
    finally:
        ray.shutdown()


def test_a_node_that_never_comes_up_is_one_line(monkeypatch, leftovers):
    monkeypatch.setattr(connection, "STARTS", 1)
    late = RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port")
    monkeypatch.setattr(Node, "start_head_processes", too_slow(Node.start_head_processes, late))
    with pytest.raises(UserError, match="1 times a node was not there within 30 s.*--serial"):
        start_here(num_cpus=1)
    assert not ray.is_initialized() and not leftovers.remaining(5, command="gcs_server")
