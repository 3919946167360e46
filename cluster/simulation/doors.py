"""Every port that a Ray started here listens on, and whether it opens without the token.

Ray 2.60 in token mode, as read from the doors themselves: HTTP servers (dashboard with its job and state API, agents)
answer 401 without a token and 403 to a wrong one, gRPC servers (GCS, raylets, workers, drivers) UNAUTHENTICATED. By
design these answer anybody, and are counted apart, as `OPEN_BY_DESIGN`:

- the metrics ports of nodes, of the dashboard and of the autoscaler: metrics in Prometheus' format, no way to act;
- of the dashboard the page itself ("/", static, without data), `/api/authentication_mode` and `/api/gcs_healthz`;
- gRPC's health check: that a server is alive.

They are as reachable as the interface that they are bound to: 127.0.0.1 for a local cluster, the cluster's network
elsewhere, where a network policy or a firewall has to confine them.
"""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grpc

TIMEOUT_S = 10.0
LISTENING = "0A"  # in /proc/net/tcp
WRONG_TOKEN = "0" * 64

# What tells most or acts, of each server that speaks HTTP.
HTTP_PATHS = {
    "dashboard": (
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("GET", "/api/cluster_status"),
        ("GET", "/nodes?view=summary"),
        ("GET", "/logical/actors"),
        ("GET", "/api/v0/tasks"),
        ("GET", "/api/v0/logs?node_id=none"),
        ("GET", "/metrics"),
    ),
    "agent": (("GET", "/api/job_agent/jobs/"), ("POST", "/api/job_agent/jobs/"), ("GET", "/api/v0/logs")),
    "runtime_env": (("POST", "/get_or_create_runtime_env"), ("POST", "/delete_runtime_env_if_possible")),
}
# One call of each service; a server knows some of them. Those in `ACTING` are never made with the right token.
GRPC_METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/HealthCheck",
)
ACTING = ("POST", "/ray.rpc.ObjectManagerService/Pull")

Answer = Literal["refused", "answered", "unknown"]


class Listener(NamedTuple):
    """A TCP socket that waits for connections."""

    host: str
    port: int
    pid: int
    process: str

    @property
    def is_loopback(self) -> bool:
        return _plain(self.host).is_loopback


@dataclass(frozen=True)
class Door:
    """One thing that a port can be asked, and what it says without, with a wrong and with the right token."""

    port: int
    process: str
    asked: str
    without: Answer
    wrong: Answer
    right: Answer

    @property
    def is_open(self) -> bool:
        return "answered" in (self.without, self.wrong)


@dataclass(frozen=True)
class DoorReport:
    listeners: tuple[Listener, ...]
    doors: tuple[Door, ...]
    open_by_design: tuple[str, ...]  # metrics ports

    @property
    def num_open(self) -> int:
        return sum(door.is_open for door in self.doors)

    @property
    def beyond_loopback(self) -> tuple[Listener, ...]:
        return tuple(listener for listener in self.listeners if not listener.is_loopback)

    def metrics(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "doors_tested": len(self.doors),
            "doors_open_without_token": self.num_open,
            "doors_beyond_loopback": len(self.beyond_loopback),
            "doors_open_by_design": list(self.open_by_design),
            "listeners": len(self.listeners),
            "doors": [asdict(door) for door in self.doors],
        }


def examine_doors(pids: set[int], token: str) -> DoorReport:
    """Ask at every port of these processes: without a token, with a wrong one and with `token`. Nothing is changed.

    All are asked at 127.0.0.1, wherever they listen. A node's agent opens its ports some seconds after the cluster is
    up: what is not open yet is not examined. Raises RuntimeError where nothing listens.
    """
    listeners = tuple(sorted(find_listeners(pids)))
    if not listeners:
        raise RuntimeError(f"none of the processes {sorted(pids)} listens on a TCP port; examine a cluster that runs")
    doors: list[Door] = []
    open_by_design: list[str] = []
    for listener in listeners:
        kind = _http_kind(listener, token)
        if kind == "metrics":
            open_by_design.append(f"{listener.process}: /metrics on {listener.host}:{listener.port}")
        elif kind is not None:
            doors += _examine_http(listener, kind, token)
        else:
            doors += _examine_grpc(listener, token)
    return DoorReport(listeners, tuple(doors), tuple(open_by_design))


# -- who listens -------------------------------------------------------------------------------------------------


def process_tree(root: int) -> set[int]:
    """A process and all that it has started, as far as their parents live."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def session_processes(session: str) -> set[int]:
    """Processes whose command line names a Ray session's folder, and theirs: a head leaves the process that started it."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if session.encode() in path.read_bytes():
                pids |= process_tree(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pids - {os.getpid()}


def find_listeners(pids: set[int]) -> Iterator[Listener]:
    """The TCP sockets on which these processes wait for connections, in this network namespace."""
    owners = {inode: pid for pid in pids for inode in _sockets_of(pid)}
    seen = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] != LISTENING or fields[9] not in owners or fields[9] in seen:
                continue
            seen.add(fields[9])
            address, port = fields[1].split(":")
            pid = owners[fields[9]]
            yield Listener(_address(address), int(port, 16), pid, _process_name(pid))


def _sockets_of(pid: int) -> Iterator[str]:
    try:
        links = list(Path("/proc", str(pid), "fd").iterdir())
    except (FileNotFoundError, PermissionError):
        return
    for link in links:
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            yield match[1]


def _address(text: str) -> str:
    """From /proc/net's hexadecimal: 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return str(ip_address(b"".join(words)))


def _plain(host: str) -> Any:
    address = ip_address(host)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _process_name(pid: int) -> str:
    """Such as `gcs_server`, `ray::DashboardAgent` or `dashboard.py`."""
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    scripts = [Path(word).name for word in words if word.endswith(".py")]
    return scripts[0] if scripts else Path(words[0].split(" ")[0]).name


# -- what they answer --------------------------------------------------------------------------------------------


def _http_kind(listener: Listener, token: str) -> str | None:
    """Which of `HTTP_PATHS` a server is, "metrics" for one of Prometheus, None for one that speaks no HTTP."""
    if listener.process == "gcs_server" or listener.process == "raylet":
        return None
    found = _http(listener, "GET", "/metrics", token)
    if found is None:
        return None
    status, body = found
    if status == 200 and body.startswith(b"# HELP"):
        return "metrics"
    if listener.process.startswith("dashboard"):
        return "dashboard"
    return "runtime_env" if "RuntimeEnv" in listener.process else "agent"


def _examine_http(listener: Listener, kind: str, token: str) -> Iterator[Door]:
    for method, path in HTTP_PATHS[kind]:
        without, wrong = (_http_answer(listener, method, path, key) for key in ("", WRONG_TOKEN))
        right: Answer = "unknown" if method in ACTING else _http_answer(listener, method, path, token)
        yield Door(listener.port, listener.process, f"{method} {path}", without, wrong, right)


def _http_answer(listener: Listener, method: str, path: str, token: str) -> Answer:
    found = _http(listener, method, path, token)
    if found is None:
        return "unknown"
    return "refused" if found[0] in (401, 403) else "answered"


def _http(listener: Listener, method: str, path: str, token: str) -> tuple[int, bytes] | None:
    """Status and first bytes of the body; None where no HTTP is spoken."""
    headers: Mapping[str, str] = {"Authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body=b"" if method == "POST" else None, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(64)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _examine_grpc(listener: Listener, token: str) -> Iterator[Door]:
    for method in GRPC_METHODS:
        without, wrong = (_call(listener, method, key) for key in ("", WRONG_TOKEN))
        if "unknown" in (without, wrong):  # a service that this server does not have
            continue
        right: Answer = "unknown" if method in ACTING else _call(listener, method, token)
        yield Door(listener.port, listener.process, method, without, wrong, right)


def _call(listener: Listener, method: str, token: str) -> Answer:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return "refused"
            gone = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
            return "unknown" if error.code() in gone else "answered"
    return "answered"
