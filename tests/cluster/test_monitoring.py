"""The board and the alerts ask for what is there: a real Prometheus, a real run on a real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

from cluster.events.ray_metrics import RayMeter
from cluster.host.connection import start_here
from cluster.host.ports import free_port
from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.monitoring.board import BOARD_FILE, SERVING_BOARD_FILE, board_text, make_board, make_serving_board
from cluster.monitoring.check import query_alerts, query_board
from cluster.monitoring.discovery import Clusters, session_addresses
from cluster.monitoring.prometheus_api import call
from cluster.monitoring.queries import gauge, names_in, rate
from cluster.monitoring.server import PrometheusServer, find_prometheus, monitor
from cluster.recipes.optimize import rollout_folders
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.workers.telemetry import Telemetry
from tests.support.sabotage import Plan, sabotage
from tests.support.small_run import ListLog, finish, save_models, small_config, small_starts
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.live_metrics import METRICS, PrometheusMeter
from wmpo_ray.runs.trackers.prometheus import OF_A_TASK, PrometheusTracker
from wmpo_ray.runs.trackers.tracker import OPTIMIZE

RUN = "watched"
NUM_UPDATES = 8
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
)


class Watched(NamedTuple):
    """A run that is over, and the Prometheus that watched it."""

    url: str
    window_s: float
    address: str  # of the metrics of Ray's node
    session: Path
    is_planned_known: bool  # whether a gauge that was set once, before the run, was still exported after it


OF_TASK = {f"task/push/{name}": 0.5 for name in OF_A_TASK} | {
    "task/push/admitted_groups": 4,
    "task/push/refused_groups": 2,
}


def short_config() -> Config:
    """Its workers look alive often, and a replacement comes at once."""
    base = small_config(imagination_actors=2).model_dump()
    base["grpo"]["num_updates"] = NUM_UPDATES
    base["faults"] |= {"heartbeat_every_s": 0.5, "heartbeat_timeout_s": 30.0, "backoff_s": 0.1}
    return Config.model_validate(base)


def train(runtime: RayRuntime, meter: RayMeter, folder: Path) -> None:
    """Train with a verifier, under a plan that kills one worker."""
    config, models = short_config(), folder / "models"
    save_models(models, config)
    world_model = models / "world-model"
    paths = ModelPaths(models / "policy", world_model, world_model, models / "reward-model", folder / "checkpoints")
    ledger = Ledger(folder / "ledger.jsonl")
    team = Team(config, runtime, paths, Telemetry(meter))
    rollouts = Rollouts(config, team, ledger, *rollout_folders(folder))
    finish(TrainingLoop(config, team, small_starts(), ledger, ListLog(), rollouts), folder)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    plan = Plan(folder / "plan")
    plan.add("score-1-0")  # of the only reward worker: the run waits for its successor
    start_here(num_cpus=4, _system_config={"metrics_report_interval_ms": 1000})
    node = ray.nodes()[0]
    session = Path(node["ObjectStoreSocketName"]).parents[1]
    address = f"127.0.0.1:{node['MetricsExportPort']}"
    server = PrometheusServer(find_prometheus(), folder / "prometheus", free_port(), scrape_interval_s=1)
    server.set_ray_targets([address])
    try:
        with server, pytest.MonkeyPatch.context() as patch:
            sabotage(patch, plan)
            began, meter = time.time(), RayMeter(RUN)
            meter.set("wmpo_stage", 1, stage="optimize")
            meter.set("wmpo_updates_planned", NUM_UPDATES)
            train(RayRuntime(), meter, folder)
            # Only recipes that roll out in the environment log the first one, and only runs of several tasks the others.
            PrometheusTracker(meter).log(OPTIMIZE, NUM_UPDATES, {"rollout/success_rate": 0.5, **OF_TASK})
            time.sleep(3)  # one interval of Ray's and a scrape, and one of each in reserve
            assert not plan.left, "no worker was killed"
            planned = call(server.url, "query", query=f'ray_wmpo_updates_planned{{run="{RUN}"}}')["result"]
            yield Watched(server.url, time.time() - began, address, session, bool(planned))
    finally:
        ray.shutdown()


@needs_prometheus
def test_every_query_of_the_board_returns_data(watched):
    results = query_board(watched.url, RUN, watched.window_s + 5, rate_interval_s=4)
    assert [r for r in results if r.error] == []
    assert [(r.panel, r.expr) for r in results if not r.has_data] == []
    assert len(results) == 2 + sum(len(panel.get("targets", ())) for panel in make_board()["panels"])


@needs_prometheus
def test_another_run_has_no_metrics(watched):
    results = query_board(watched.url, "nobody", watched.window_s, rate_interval_s=4)
    assert {r.panel for r in results if r.has_data} == {"variable run", "GPU memory of a worker", "GPU utilisation"}


@needs_prometheus
def test_every_alert_is_taken_and_evaluated(watched):
    assert [r for r in query_alerts(watched.url, watched.window_s) if r.error] == []
    rules = [rule for group in call(watched.url, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 9 and {rule["health"] for rule in rules} == {"ok"}, rules


@needs_prometheus
def test_a_metric_that_is_set_once_stays(watched):
    assert watched.is_planned_known


@needs_prometheus
def test_a_cluster_without_a_dashboard_is_found_by_its_session(watched):
    assert session_addresses(watched.session) == [watched.address]
    assert watched.address in Clusters(watched.session.parent).targets()


def test_a_session_whose_cluster_is_gone_or_is_another_one_is_not_found(tmp_path):
    """Its ports may belong to somebody else by now, even to another Ray."""
    meter, port = PrometheusMeter("somebody"), free_port()
    meter.serve(port)
    session = tmp_path / "session_gone"
    session.mkdir()
    for text in (str(port), str(free_port()), "-1", "not a port"):
        (session / "metrics_export_port_abc").write_text(text)
        assert Clusters(tmp_path).targets() == []
    entries = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{port}"]}]
    (session / "prom_metrics_service_discovery.json").write_text(json.dumps(entries))
    assert session_addresses(session) == [f"127.0.0.1:{port}"] and Clusters(tmp_path).targets() == []
    for damaged in ("", "{}", "[1]", '[{"targets": 3}]'):
        (session / "prom_metrics_service_discovery.json").write_text(damaged)
        assert session_addresses(session) == []


# -- the board ---------------------------------------------------------------------------------------------------


def panels(board: dict | None = None) -> list[dict]:
    return [panel for panel in (board or make_board())["panels"] if panel["type"] != "row"]


def test_the_board_in_the_repository_is_what_is_built():
    for file, board in ((BOARD_FILE, make_board()), (SERVING_BOARD_FILE, make_serving_board())):
        assert file.read_text() == board_text(board), "run: python -m cluster.monitoring.board"


def test_every_metric_of_the_catalogue_is_on_the_board():
    shown = {name for panel in panels() for target in panel["targets"] for name in names_in(target["expr"])}
    assert shown == set(METRICS)


@pytest.mark.parametrize("board", [make_board(), make_serving_board()], ids=["run", "serving"])
def test_no_panel_lies_on_another_or_leaves_the_page(board):
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] and place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_every_panel_can_be_read_by_somebody_who_did_not_make_it():
    for board in (make_board(), make_serving_board()):
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
    for panel in (*panels(), *panels(make_serving_board())):
        defaults = panel["fieldConfig"]["defaults"]
        assert len(panel["description"].split()) > 5 and defaults["unit"] and defaults["thresholds"]["steps"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        limits = [step["value"] for step in defaults["thresholds"]["steps"]]
        assert limits[0] is None and limits[1:] == sorted(limits[1:]), panel["title"]


def test_queries_are_of_the_catalogue():
    assert (
        rate("wmpo_groups_total", "verdict")
        == 'sum by (verdict) (rate(ray_wmpo_groups_total{run="$run"}[$__rate_interval]))'
    )
    with pytest.raises(ValueError, match="no gauge of that name"):
        gauge("wmpo_groups_total")
    with pytest.raises(ValueError, match="has no label colour"):
        gauge("wmpo_update", colour="red")
    with pytest.raises(ValueError, match="has no label role"):
        gauge("wmpo_update", "role")


# -- wmpo monitor ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cluster(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def test_without_the_program_it_says_how_to_install_it(no_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install prometheus"):
        monitor(tmp_path, free_port(), None, (), print)
    with pytest.raises(UserError, match="nowhere/prometheus is no program"):
        monitor(tmp_path, free_port(), Path("nowhere/prometheus"), (), print)


@needs_prometheus
def test_what_is_missing_or_taken_is_said_before_anything_starts(no_cluster, tmp_path):
    with pytest.raises(UserError, match=f"no Ray cluster found: no session below {tmp_path}/ray answers"):
        monitor(tmp_path, free_port(), None, (), print)
    with pytest.raises(UserError, match="--target nonsense: expected HOST:PORT"):
        monitor(tmp_path, free_port(), None, ("nonsense",), print)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} is taken"):
            monitor(tmp_path, port, None, ("127.0.0.1:1",), print)


@needs_prometheus
def test_it_watches_until_it_is_told_to_end_and_ends_its_prometheus(tmp_path):
    meter, source, port = PrometheusMeter("outside-ray"), free_port(), free_port()
    meter.set("wmpo_update", 3)
    meter.serve(source)
    command = [sys.executable, "-m", "wmpo_ray", "monitor", "--folder", str(tmp_path / "data"), "--port", str(port)]
    command += ["--target", f"127.0.0.1:{source}", "--target", f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(3)]
    assert "1 of 2 addresses answer" in told[0] and "does not answer: " in told[1]
    assert f"http://127.0.0.1:{port}/graph" in told[2]
    found = call(f"http://127.0.0.1:{port}", "query", query="ray_wmpo_update")["result"]
    assert [(s["metric"]["run"], s["value"][1]) for s in found] == [("outside-ray", "3")]
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    process.wait(timeout=20)
    assert process.returncode == 0 and "grafana-server" in rest and str(BOARD_FILE) in rest
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@needs_prometheus
def test_two_do_not_share_a_folder(tmp_path):
    first, second = (PrometheusServer(find_prometheus(), tmp_path, free_port()) for _ in range(2))
    with first:
        with pytest.raises(UserError, match="is in use by another Prometheus: choose another --folder"), second:
            pass
        assert call(first.url, "query", query="1")["result"]
    with second:
        assert call(second.url, "query", query="1")["result"]


@needs_prometheus
def test_a_prometheus_that_does_not_start_says_why(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(UserError, match="Prometheus ended with exit code .: panic: Unable to create"):
        PrometheusServer(find_prometheus(), tmp_path, free_port()).__enter__()
