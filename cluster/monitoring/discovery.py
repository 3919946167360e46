"""Where the metrics of the Ray clusters on this machine are read: found in their session folders, without a token."""

from __future__ import annotations

import json
import os
import re
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

DISCOVERY_FILE = "prom_metrics_service_discovery.json"  # written by the dashboard of a cluster every 5 s
PORT_FILES = "metrics_export_port_*"  # written by each node of this machine; there without a dashboard too
PROBE_S = 2.0


def ray_folder() -> Path:
    """Where Ray keeps its sessions, as Ray finds it."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


class Clusters:
    """The running clusters below a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: set[tuple[Path, str]] = set()

    def targets(self) -> list[str]:
        """host:port of everything that running clusters let Prometheus read, [] if none runs.

        A session's folder outlives its cluster, and its ports may belong to another process by now: a session counts as
        running if one of its addresses answers with the session's own name.
        """
        found: set[str] = set()
        for session in sorted(self._folder.glob("session_*")):
            if not session.is_symlink():
                addresses = session_addresses(session)
                if any(self._is_alive(session, address) for address in addresses):
                    found.update(addresses)
        return sorted(found)

    def _is_alive(self, session: Path, address: str) -> bool:
        key = (session, address)
        if key in self._known and _answers(address):
            return True
        self._known.discard(key)
        if f'SessionName="{session.name}"'.encode() not in _read_metrics(address):
            return False
        self._known.add(key)
        return True


def is_address(text: str) -> bool:
    """Whether `text` is HOST:PORT."""
    match = re.fullmatch(r"[\w.\-\[\]:]+:(\d{1,5})", text)
    return match is not None and 0 < int(match[1]) < 2**16


def session_addresses(session: Path) -> list[str]:
    """Of a session's nodes, its autoscaler and its dashboard; only of this machine's nodes if it has no dashboard."""
    try:
        entries = json.loads((session / DISCOVERY_FILE).read_text())
        return [target for entry in entries for target in entry["targets"]]
    except (FileNotFoundError, NotADirectoryError):
        ports = (_read_port(file) for file in session.glob(PORT_FILES))
        return [f"127.0.0.1:{port}" for port in ports if port]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # not ours to read, or not what Ray writes


def _read_port(file: Path) -> int:
    text = file.read_text(errors="replace").strip() if file.is_file() else ""
    return int(text) if re.fullmatch(r"\d{1,5}", text) else 0  # -1: this node shows no metrics


def _answers(address: str) -> bool:
    if not is_address(address):
        return False
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S):
            return True
    except OSError:
        return False


def _read_metrics(address: str) -> bytes:
    if not _answers(address):
        return b""
    try:
        with urlopen(f"http://{address}/metrics", timeout=PROBE_S) as answer:
            return answer.read()
    except (URLError, HTTPException, OSError):
        return b""
