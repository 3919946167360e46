"""Live metrics agree with the ledger, and every documented metric is emitted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cluster.events.ray_metrics import RayMeter
from cluster.events.run_log import FolderLog
from cluster.events.status import Status
from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.telemetry import Telemetry
from cluster.workers.trace_log import FOLDER, TraceLog
from tests.support.small_run import finish, model_paths, save_models, small_config, small_starts
from wmpo_ray.config.cluster import FaultsConfig
from wmpo_ray.runs.live_metrics import METRICS, PrometheusMeter
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.prometheus import PrometheusTracker
from wmpo_ray.runs.trackers.tracker import Trackers

# A run on CPUs that nothing happens to has none of these; the board's test has a fault.
FAULTS = {"wmpo_worker_losses_total", "wmpo_worker_restarts_total", "wmpo_recovery_seconds"}
RARE = FAULTS | {"wmpo_quarantined_groups_total", "wmpo_late_answers_total"}
GPU = {"wmpo_gpu_memory_bytes", "wmpo_gpu_utilisation_ratio"}
IN_AN_ENVIRONMENT = {"wmpo_rollout_success_rate"}  # this run makes its rollouts in imagination
OF_THE_STAGE = {"wmpo_stage", "wmpo_updates_planned"}
OF_SEVERAL_TASKS = {name for name in METRICS if name.startswith("wmpo_task_")}  # this run has one


class Watched:
    def __init__(self, folder, keep_traces=4):
        # Signs of life often: the run is shorter than the usual two seconds between them.
        config = small_config(imagination_actors=2)
        self.config = config.model_copy(update={"faults": FaultsConfig(heartbeat_every_s=0.05)})
        save_models(folder / "models", self.config)
        self.folder, self.meter = folder, PrometheusMeter("small")
        self.status = Status(folder)
        telemetry = Telemetry(self.meter, TraceLog(folder / FOLDER, keep_traces), self.status)
        telemetry.is_due = lambda: True  # at every turn: the run is shorter than a second
        self.ledger, trackers = Ledger(folder / "ledger.jsonl"), [PrometheusTracker(self.meter)]
        self.log = FolderLog(folder, Trackers(JsonlTracker(folder), trackers), lambda update, values: None)
        team = Team(self.config, SerialRuntime(), model_paths(folder / "models", folder / "checkpoints"), telemetry)
        rollouts = Rollouts(self.config, team, self.ledger, *rollout_folders(folder))
        finish(TrainingLoop(self.config, team, small_starts(), self.ledger, self.log, rollouts), folder)
        telemetry.trace.flush()
        self.status.close("done")

    def samples(self, name: str) -> dict[tuple, float]:
        """Labels, without `run`, -> value of every series of a metric."""
        found = {}
        for family in self.meter.registry.collect():
            for sample in family.samples:
                if sample.name == f"ray_{name}":
                    assert sample.labels.pop("run") == "small"
                    found[tuple(sample.labels.values())] = sample.value
        return found

    def total(self, name: str) -> float:
        return sum(self.samples(name).values())


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    return Watched(tmp_path_factory.mktemp("watched"))


def test_what_was_imagined_is_what_the_account_says(watched):
    config, account = watched.config, watched.ledger.account()
    # A request is imagined whole; those of its groups that were late are counted as well.
    trajectories = watched.total("wmpo_imagined_trajectories_total")
    assert trajectories >= config.rollout.group_size * (account.trained + account.rejected) - 1e-6
    assert watched.total("wmpo_imagined_chunks_total") == trajectories * config.num_chunks
    assert watched.total("wmpo_imagined_frames_total") == trajectories * config.environment.horizon
    verdicts = {labels[0]: value for labels, value in watched.samples("wmpo_groups_total").items()}
    rejected = Counter(watched.ledger.verdicts())
    rejected.pop("surplus", None)  # of those admitted before, too
    assert {name: verdicts.get(name, 0) for name in rejected} == dict(rejected)
    assert verdicts["admit"] >= account.trained


def test_every_metric_is_told_by_a_run(watched):
    told = {family.name.removeprefix("ray_") for family in watched.meter.registry.collect() if family.samples}
    told |= {f"{name}_total" for name in told}
    assert set(METRICS) - told <= RARE | GPU | OF_THE_STAGE | IN_AN_ENVIRONMENT | OF_SEVERAL_TASKS


def test_names_and_help_follow_the_rules_of_prometheus():
    for name, metric in METRICS.items():
        assert name.startswith("wmpo_") and name.endswith("_total") == (metric.kind.value == "counter"), name
        assert bool(metric.buckets) == (metric.kind.value == "histogram"), name
        assert metric.help[0].isupper() or metric.help[0].isdigit(), name
        assert "run" not in metric.labels, name


def test_phases_are_no_more_than_the_calls_and_traces_hold_every_call(watched):
    lines = [
        json.loads(line)
        for path in sorted((watched.folder / FOLDER).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert {line["call"] for line in lines} == {
        "imagine", "score", "update_part", "update", "load_weights", "evaluate", "compare_labels"
    }  # fmt: skip
    calls = watched.samples("wmpo_call_seconds_count")
    assert Counter((line["role"], line["call"]) for line in lines) == calls
    phases = watched.total("wmpo_phase_seconds_total")
    assert 0 < phases <= sum(line["seconds"] for line in lines) + 1e-3
    for line in lines:
        for _, start, seconds in line["spans"]:
            assert line["start"] - 1e-3 <= start and start + seconds <= line["start"] + line["seconds"] + 1e-3
    trained = {tuple(group) for line in lines if line["call"] == "imagine" for group in line["groups"]}
    assert trained == set(watched.ledger.records)


def test_status_says_where_the_run_stands(watched):
    status = json.loads((watched.folder / "status.json").read_text())
    assert status["update"] == status["version"] == watched.config.grpo.num_updates
    assert {worker["name"] for worker in status["workers"]} == {
        "imagination-0", "imagination-1", "reward-0", "learner-0", "environment-0"
    }  # fmt: skip
    assert status["queue"]["verdicts"]["admit"] >= watched.ledger.account().trained
    assert 0 <= status["imagined_success"] <= 1 and status["rates"]["frames_per_s"] > 0
    assert all(worker["memory_bytes"] > 1e7 for worker in status["workers"] if worker["role"] == "learner")


def test_only_the_newest_traces_are_kept(tmp_path):
    watched = Watched(tmp_path, keep_traces=2)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    last = watched.config.grpo.num_updates
    assert names == [f"update-{update:06d}.jsonl" for update in (last - 1, last)]


def test_ray_takes_every_kind_of_metric_and_no_other_name():
    meter = RayMeter("small")
    for name, metric in METRICS.items():
        verb = {"counter": meter.add, "gauge": meter.set, "histogram": meter.observe}[metric.kind.value]
        verb(name, 1.0, **dict.fromkeys(metric.labels, "x"))
    meter.add("wmpo_late_answers_total", 0)  # Ray itself refuses to add nothing
    with pytest.raises(KeyError):
        meter.set("wmpo_nothing", 1)
