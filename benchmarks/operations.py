"""A run as a job on a cluster of this machine, watched by Prometheus: benchmarks/results/operations.json.

    python -m benchmarks.operations [--run DIR] [--updates 40]

Measures the seconds from the submission of the demo's GRPO stage until its first group is imagined; how many of the
board's queries return data, with one worker killed on the way; what the live metrics cost, on against off, update by
update within one run; and which doors answer without a token. Needs Prometheus.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobStatus

from benchmarks.prepared_run import ROOT, check_run, copy_run, make_run
from benchmarks.results_file import write_results
from cluster.events.ray_metrics import RayMeter
from cluster.events.run_log import FolderLog
from cluster.host.connection import start_here
from cluster.host.local_cluster import LocalCluster
from cluster.host.ports import free_port
from cluster.host.security import read_token
from cluster.host.submission import connect, submit
from cluster.loop.ledger import FILE_NAME as LEDGER
from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.monitoring.check import query_board
from cluster.monitoring.server import PrometheusServer, find_prometheus
from cluster.recipes.optimize import rollout_folders
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.simulation.doors import examine_doors, process_tree
from cluster.workers.telemetry import Telemetry
from cluster.workers.trace_log import TraceLog
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.statistics import mean_interval
from wmpo_ray.data.store import load_episodes
from wmpo_ray.rollout.fidelity import starts_of
from wmpo_ray.runs.live_metrics import NoMeter
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.tracker import Trackers

JOB_SETTINGS = ["grpo.num_updates=3", "evaluation.every_updates=1"]
SCRAPE_S = 2
RATE_INTERVAL_S = 4.0 * SCRAPE_S  # as Grafana chooses it
RAY_REPORTS_EVERY_S = 10

Figures = dict[str, dict[str, Any]]


# -- a job, and the board ----------------------------------------------------------------------------------------


def run_job(prepared: Path, folder: Path) -> Figures:
    """Submit the stage, kill a worker on the way, ask Prometheus everything that the board asks."""
    out = folder / "demo"
    copy_run(prepared, out, JOB_SETTINGS)
    command = ["python", "-m", "wmpo_ray", "run", "demo", "--out", str(out), "--until", "optimize"]
    command += [word for setting in JOB_SETTINGS for word in ("--set", setting)]
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(num_workers=2))
        client = connect(cluster.dashboard)
        doors = examine_doors(process_tree(os.getpid()) - {os.getpid()}, read_token())
        server = PrometheusServer(find_prometheus(), folder / "prometheus", free_port(), scrape_interval_s=SCRAPE_S)
        stack.enter_context(server)
        submitted = time.time()
        job = submit(client, command, ROOT, {})
        ledger = out / LEDGER
        while not ledger.exists() or b'"imagined"' not in ledger.read_bytes():
            if client.get_job_status(job).is_terminal():
                sys.exit(client.get_job_logs(job))
            time.sleep(0.05)
        first_group_s = time.time() - submitted
        status = json.loads((out / "status.json").read_text())
        server.set_ray_targets(status["metrics"])
        kill_a_worker(out)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        if client.get_job_status(job) != JobStatus.SUCCEEDED:
            sys.exit(client.get_job_logs(job))
        time.sleep(RAY_REPORTS_EVERY_S + SCRAPE_S)
        queries = query_board(server.url, out.name, time.time() - submitted, RATE_INTERVAL_S)
    for query in queries:
        if query.error or not query.has_data:
            print(f"no data: {query.panel}: {query.expr} {query.error}", file=sys.stderr)
    return {
        "submit_to_first_group_s": figure(first_group_s, "s, demo, two worker nodes on this machine"),
        "doors_tested": figure(len(doors.doors), "questions to ports of Ray, without and with a wrong token"),
        "doors_open_without_token": figure(doors.num_open, "of them answered"),
        "doors_beyond_loopback": figure(len(doors.beyond_loopback), "ports on other addresses than 127.0.0.1"),
        "board_queries": figure(len(queries), "queries"),
        "board_queries_with_data": figure(sum(query.has_data for query in queries), "queries"),
    }


def kill_a_worker(out: Path) -> None:
    """kill -9 of the imagination worker that answered last: the board has a row for faults."""
    lines = [json.loads(line) for path in (out / "traces").glob("*.jsonl") for line in path.read_text().splitlines()]
    os.kill([line["pid"] for line in lines if line["role"] == "imagination"][-1], signal.SIGKILL)


# -- what the metrics cost ---------------------------------------------------------------------------------------


class Timed:
    """Passes every call on, and adds up its processor time."""

    def __init__(self, target: Any):
        self._target, self.seconds = target, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began

        return timed


class SwitchedTelemetry(Telemetry):
    """Listens in every second update only, and notes what each update took."""

    def __init__(self, traces: Path):
        super().__init__()
        self._traces = TraceLog(traces, 4)
        self.seconds: list[tuple[bool, float]] = []  # (whether it listened, processor time of the process per group)
        self.own_shares: list[float] = []  # of an update's processor time, what exporting its metrics took
        self._began = 0.0
        self._num_groups = 0  # of the updates before
        self._switch(True)

    def _switch(self, is_on: bool) -> None:
        self.is_on = is_on
        self.meter.close()
        told: Any = (Timed(RayMeter("cost")), Timed(self._traces)) if is_on else (NoMeter(), None)
        self.meter, self.trace = told

    def updated(self) -> None:
        super().updated()
        # An update imagines as many groups as it takes to admit its batch: per group, updates can be compared.
        now, num_groups = time.process_time(), sum(self.verdicts.values())
        if self._num_groups:  # in the first update everything is slower
            self.seconds.append((self.is_on, (now - self._began) / (num_groups - self._num_groups)))
            if self.is_on:
                self.own_shares.append(self._own_seconds() / (now - self._began))
        self._num_groups = num_groups
        self._switch(not self.is_on)
        self._began = time.process_time()

    def _own_seconds(self) -> float:
        """Processor time of the calls since the last switch, and of the thread that sets gauges again."""
        told: Any = (self.meter, self.trace)
        threads = [thread.ident for thread in threading.enumerate() if thread.name == RayMeter.THREAD and thread.ident]
        again = sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in threads)
        return again + sum(each.seconds for each in told)


def measure_cost(prepared: Path, folder: Path, num_updates: int) -> Figures:
    """Everything in this process, so that its processor time is all there is; metrics go to a real Ray."""
    settings = [f"grpo.num_updates={num_updates}", "evaluation.every_updates=0"]
    config = copy_run(prepared, folder / "cost", settings)
    configure_process(config.cluster.threads_per_process)
    out = folder / "cost"
    models = out / "models"
    paths = ModelPaths(
        models / "base-policy",
        models / "world-model",
        models / "verifier" if config.reward.verify.enabled else None,
        models / "reward-model",
        out / "checkpoints",
    )
    start_here(num_cpus=1)
    try:
        telemetry = SwitchedTelemetry(out / "traces")
        ledger, log = Ledger(out / LEDGER), FolderLog(out, Trackers(JsonlTracker(out)), lambda update, values: None)
        team = Team(config, SerialRuntime(), paths, telemetry)
        starts = starts_of(load_episodes(out / "trajectories" / "collect.parquet"))
        rollouts = Rollouts(config, team, ledger, *rollout_folders(out))
        TrainingLoop(config, team, starts, ledger, log, rollouts).run(str(models / "policy"))
    finally:
        ray.shutdown()
    # Neighbours are compared: updates grow longer and shorter as the policy improves.
    pairs = zip(telemetry.seconds[::2], telemetry.seconds[1::2], strict=False)
    shares = [(dict(pair)[True] / dict(pair)[False]) - 1 for pair in pairs]
    mean, low, high = mean_interval(shares)
    unit = (
        "processor time of an update, for each group of it, with metrics over without, minus 1; "
        f"mean of {len(shares)} pairs in one run"
    )
    own, own_low, own_high = mean_interval(telemetry.own_shares)
    own_unit = (
        "of an update's processor time goes to exporting its metrics: calls, and the thread that sets gauges again"
    )
    return {
        "metrics_cost_share": figure(mean, unit) | {"interval": [low, high]},
        "metrics_own_share": figure(own, own_unit) | {"interval": [own_low, own_high]},
    }


def figure(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of the demo done up to the gate; it is copied")
    parser.add_argument("--updates", type=int, default=40, help="in the run that measures what the metrics cost")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = arguments.run or make_run(folder / "prepared")
        check_run(prepared)
        figures = run_job(prepared, folder)
        figures |= measure_cost(prepared, folder, arguments.updates)
    for name, each in figures.items():
        print(f"{name}: {each['value']:.4g} {each['unit']}")
    command = f"python -m benchmarks.operations --updates {arguments.updates}"
    print(write_results("operations", figures, command))


if __name__ == "__main__":
    main()
