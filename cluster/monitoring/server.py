"""A Prometheus of our own for the Ray clusters of this machine: found, configured, started, watched, ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from cluster.host.ports import LOCALHOST, require_free
from cluster.monitoring.board import BOARD_FILE, FOLDER, SERVING_BOARD_FILE
from cluster.monitoring.check import ALERTS_FILE
from cluster.monitoring.discovery import Clusters, is_address, ray_folder
from cluster.monitoring.prometheus_api import call
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder_lock import FolderLock, LockedError

CONFIG_FILE = FOLDER / "prometheus.yml"
RETENTION = ("15d", "2GB")
READY_WITHIN_S, SCRAPED_WITHIN_S, END_WITHIN_S = 60.0, 15.0, 10.0
POLL_EVERY_S = 5.0


class Target(NamedTuple):
    address: str
    is_up: bool
    error: str


class PrometheusServer:
    """Prometheus on 127.0.0.1, ended with the `with` block. Everything it writes is in `folder`.

    Raises UserError where the port is taken or Prometheus does not come up.
    """

    def __init__(self, binary: Path, folder: Path, port: int, static: Sequence[str] = (), scrape_interval_s: int = 5):
        self.url = f"http://{LOCALHOST}:{port}"
        self._binary, self._folder, self._port = binary, folder, port
        self._static, self._interval = list(static), f"{scrape_interval_s}s"
        self._targets_file = folder / "ray-targets.json"
        self._log = folder / "prometheus.log"
        self._ray: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: FolderLock | None = None

    def set_ray_targets(self, addresses: list[str]) -> None:
        """Prometheus follows the file: nodes come and go while it runs."""
        if addresses == self._ray and self._targets_file.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._targets_file.with_suffix(".partial")
        partial.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": addresses}]))
        partial.replace(self._targets_file)
        self._ray = addresses

    def __enter__(self) -> Self:
        require_free(self._port)
        self._take_folder()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def require_alive(self) -> None:
        """Raises UserError with Prometheus's last words if it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise UserError(f"Prometheus ended with exit code {code}: {self._last_words()}; more in {self._log}")

    def targets(self, within_s: float = SCRAPED_WITHIN_S) -> list[Target]:
        """All targets, as soon as each was asked once, or when the time is over."""
        deadline = time.monotonic() + within_s
        while True:
            active = call(self.url, "targets", state="active")["activeTargets"]
            is_known = len(active) >= len({*self._ray, *self._static})
            if (is_known and all(t["health"] != "unknown" for t in active)) or time.monotonic() > deadline:
                return [Target(t["labels"]["instance"], t["health"] == "up", t["lastError"]) for t in active]
            time.sleep(0.2)

    def _start(self) -> None:
        self.set_ray_targets(self._ray)
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config(), sort_keys=False))
        age, size = RETENTION
        command = [
            str(self._binary),
            f"--config.file={config}",
            f"--web.listen-address={LOCALHOST}:{self._port}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--storage.tsdb.retention.time={age}",
            f"--storage.tsdb.retention.size={size}",
        ]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C is for us, and we end it in order.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._wait_until_ready()

    def _take_folder(self) -> None:
        """Prometheus has a lock of its own, but by then our files in the folder would be those of another one."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock = FolderLock(self._folder / "lock")
        except LockedError as error:
            raise UserError(f"{self._folder} is in use by another Prometheus: choose another --folder") from error

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if "err=" in line or "panic:" in line), "it did not say why")

    def _config(self) -> dict:
        config = yaml.safe_load(CONFIG_FILE.read_text())
        config["global"] |= {"scrape_interval": self._interval, "evaluation_interval": self._interval}
        config["rule_files"] = [str(ALERTS_FILE)]
        ray, outside = config["scrape_configs"]
        ray["file_sd_configs"][0]["files"] = [str(self._targets_file.absolute())]
        outside["static_configs"][0]["targets"] = self._static
        return config

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            self.require_alive()
            try:
                with urlopen(f"{self.url}/-/ready", timeout=1):
                    return
            except (URLError, OSError):
                time.sleep(0.1)
        raise UserError(f"Prometheus was not ready within {READY_WITHIN_S:.0f} s; all it said is in {self._log}")


def find_prometheus(path: Path | None = None) -> Path:
    """Raises UserError where there is none."""
    found = shutil.which(str(path or "prometheus"))
    if found is None:
        where = f"{path} is no program that can be run" if path else "there is no prometheus on the PATH"
        raise UserError(
            f"{where}: install it (`apt-get install prometheus` on Debian and Ubuntu, else "
            "https://prometheus.io/download), or name its program with --prometheus"
        )
    return Path(found)


def monitor(folder: Path, port: int, binary: Path | None, static: Sequence[str], report: Callable[[str], None]) -> None:
    """Run Prometheus until Ctrl-C or SIGTERM, which come as KeyboardInterrupt.

    static: HOST:PORT of what is outside the clusters found here. Raises UserError, see the functions above.
    """
    for address in static:
        if not is_address(address):
            raise UserError(f"--target {address}: expected HOST:PORT, such as 127.0.0.1:9400")
    program, clusters = find_prometheus(binary), Clusters(ray_folder())
    require_free(port)
    addresses = clusters.targets()
    if not addresses and not static:
        raise UserError(
            f"no Ray cluster found: no session below {ray_folder()} answers. Start one, or a run; RAY_TMPDIR names the "
            "folder of one that has another, --target HOST:PORT a node of another machine or a run outside Ray"
        )
    server = PrometheusServer(program, folder.expanduser(), port, static)
    server.set_ray_targets(addresses)
    with server:
        for line in (*_describe(server.targets()), *viewing_instructions(server.url)):
            report(line)
        while True:
            time.sleep(POLL_EVERY_S)
            server.require_alive()
            server.set_ray_targets(clusters.targets())


def _describe(targets: list[Target]) -> list[str]:
    up = sum(target.is_up for target in targets)
    down = [f"  {target.address} does not answer: {target.error}" for target in targets if not target.is_up]
    return [f"{up} of {len(targets)} addresses answer", *down]


def viewing_instructions(url: str) -> list[str]:
    """Where the metrics are served, and how to open the dashboard."""
    boards = BOARD_FILE.parent
    mounted = "/etc/wmpo"
    return [
        f"expressions: {url}/graph   alerts: {url}/alerts",
        "",
        "The board, with a Grafana on this machine (http://127.0.0.1:3000, first login admin / admin):",
        f"  GF_SERVER_HTTP_ADDR=127.0.0.1 GF_PATHS_PROVISIONING={boards / 'provisioning'} WMPO_BOARDS={boards} \\",
        f"  WMPO_PROMETHEUS={url} grafana-server --homepath /usr/share/grafana",
        "with Docker:",
        f"  docker run --rm --network host -v {boards}:{mounted}:ro -e GF_SERVER_HTTP_ADDR=127.0.0.1 \\",
        f"  -e GF_PATHS_PROVISIONING={mounted}/provisioning -e WMPO_BOARDS={mounted} \\",
        f"  -e WMPO_PROMETHEUS={url} grafana/grafana-oss",
        f"in a Grafana that runs already: a Prometheus data source with the address {url}, then",
        f"  Dashboards > New > Import > {BOARD_FILE}",
        f"  and for policy servers {SERVING_BOARD_FILE}",
        "",
        f"Ray's own dashboard shows its graphs too if its head was started with RAY_PROMETHEUS_HOST={url}.",
        "Ctrl-C ends this Prometheus; what it has recorded stays.",
    ]
