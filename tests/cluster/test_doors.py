"""What we start listens on this machine only, and opens for the right token only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.simulation.doors import (
    DoorReport,
    Listener,
    examine_doors,
    find_listeners,
    process_tree,
    session_processes,
)

ROOT = Path(__file__).parents[2]
START_S, CALL_S = 120, 90
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A worker has a door of its own, so one is started.
LOCAL = """
import sys
from cluster.host.security import prepare_ray
prepare_ray("")
from cluster.runtimes.start import start_runtime
from cluster.runtimes.resources import Resources
class Worker:
    pass
runtime = start_runtime(False, "")
runtime.get(runtime.build(runtime.spawn(Worker, resources=Resources(0.1), name="worker")))
print("up", flush=True)
sys.stdin.read()
runtime.shutdown()
"""
JOIN = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); print('in', ray.cluster_resources()['CPU'])"


class Running(NamedTuple):
    report: DoorReport
    token: str
    token_file: Path
    gcs: str = ""


def environment(home: Path, **changes: str) -> dict[str, str]:
    """Without this process's Ray settings, and with a home in which no token stands."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **changes}


def examined(process: subprocess.Popen[str], token_file: Path, num_agent_doors: int, gcs: str = "") -> Running:
    """The node's agent opens its doors last: gRPC, metrics and, with a dashboard, its part of the job API."""
    deadline = time.monotonic() + START_S
    while _count_agent_doors(process.pid) < num_agent_doors:
        assert process.poll() is None and time.monotonic() < deadline, "it did not come up"
        time.sleep(0.2)
    token = token_file.read_text().strip()
    return Running(examine_doors(process_tree(process.pid), token), token, token_file, gcs)


def _count_agent_doors(pid: int) -> int:
    return sum(listener.process == "ray::DashboardAgent" for listener in find_listeners(process_tree(pid)))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What a run starts on this machine, by a person who has no token yet."""
    home = tmp_path_factory.mktemp("local")
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL],
        env=environment(home),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        yield examined(process, home / ".ray" / "auth_token", 2)
    finally:
        process.communicate("", START_S)


@pytest.fixture(scope="module")
def head() -> Iterator[Running]:
    """A head with a dashboard, on ports of its own."""
    home = Path(tempfile.mkdtemp(prefix="wh-"))  # a short path: Ray's sockets below it have 107 characters
    token_file = home / "token"
    token_file.touch(0o600)
    token_file.write_text(secrets.token_hex(32))
    ports = free_ports(3)
    options = [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
    options += ["--include-dashboard=true", "--num-cpus=1", f"--temp-dir={home / 'r'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        env=environment(home, **LOOPBACK, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file)),
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield examined(process, token_file, 3, f"127.0.0.1:{ports[0]}")
    finally:
        process.terminate()
        process.wait(START_S)
        for pid in session_processes(str(home / "r")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture(params=["local", "head"])
def running(request: pytest.FixtureRequest) -> Running:
    return request.getfixturevalue(request.param)


def test_nothing_listens_beyond_this_machine(running):
    assert {"gcs_server", "raylet"} <= {listener.process for listener in running.report.listeners}
    assert running.report.beyond_loopback == ()


def test_no_door_opens_without_the_right_token(running):
    metrics = running.report.metrics()
    assert metrics["doors_open_without_token"] == 0, [door for door in metrics["doors"] if "answered" in door.values()]
    assert all(door.without == door.wrong == "refused" for door in running.report.doors)
    assert all(door.right != "refused" for door in running.report.doors)
    assert {door.process for door in running.report.doors} >= {"gcs_server", "raylet", "ray::RuntimeEnvAgent"}
    json.dumps(metrics)


def test_only_metrics_are_open_by_design(running):
    assert running.report.open_by_design, "the metrics port of the node is there"
    assert all("/metrics on 127.0.0.1:" in door for door in running.report.open_by_design)


def test_the_dashboard_and_its_job_api_are_among_the_doors(head):
    asked = {door.asked: door.right for door in head.report.doors if door.process == "dashboard.py"}
    assert asked["GET /api/jobs/"] == asked["GET /nodes?view=summary"] == "answered" and "POST /api/jobs/" in asked
    agent = {door.asked for door in head.report.doors if door.process == "ray::DashboardAgent"}
    assert {"GET /api/job_agent/jobs/", "POST /api/job_agent/jobs/"} <= agent


@pytest.mark.slow
def test_a_driver_needs_the_token_to_join(head, tmp_path):
    settings = {
        "none": {"RAY_AUTH_MODE": "disabled"},
        "wrong": {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "right": {"RAY_AUTH_TOKEN": head.token},
    }
    drivers = {  # side by side: one that is refused tries for twenty seconds
        who: subprocess.Popen(
            [sys.executable, "-c", JOIN, head.gcs],
            env=environment(tmp_path, **{**LOOPBACK, "RAY_AUTH_MODE": "token", **theirs}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who, theirs in settings.items()
    }
    for who, driver in drivers.items():
        told, problem = driver.communicate(timeout=CALL_S)
        assert ("in 1.0" in told) == (driver.returncode == 0) == (who == "right"), problem
        assert ("oken is missing or incorrect" in problem) == (who != "right"), problem[-2000:]


def test_the_token_that_is_made_is_for_its_owner_only(local):
    assert stat.S_IMODE(local.token_file.stat().st_mode) == 0o600
    assert len(local.token) >= 32


def test_a_server_for_all_the_world_and_one_without_a_lock_are_found():
    """The examination itself: what it must notice, it notices."""
    script = (
        "import http.server, threading\n"
        "for host in ('127.0.0.1', '0.0.0.0'):\n"
        "    server = http.server.HTTPServer((host, 0), http.server.SimpleHTTPRequestHandler)\n"
        "    threading.Thread(target=server.serve_forever).start()\n"
        "print('up', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        hosts = {listener.host for listener in find_listeners(process_tree(process.pid))}
        assert hosts == {"127.0.0.1", "0.0.0.0"}
        report = examine_doors(process_tree(process.pid), "token")
        assert [listener.host for listener in report.beyond_loopback] == ["0.0.0.0"]
        assert report.num_open == len(report.doors) > 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::", False), ("0.0.0.0", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_which_addresses_are_this_machines_own(host, is_loopback):
    assert Listener(host, 1, 1, "x").is_loopback == is_loopback
