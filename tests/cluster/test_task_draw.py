"""Which tasks an update begins from, what is said of each, and where the run says it."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.loop.ledger import Ledger, State
from cluster.loop.reality import LabelledRollouts, label_metrics, success_metrics
from cluster.loop.start_order import StartOrder
from tests.support.fake_run import fake_summary
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.report.model_sections import gate_section
from wmpo_ray.report.result_sections import header, result_section
from wmpo_ray.report.run_data import RunData
from wmpo_ray.runs.live_metrics import PrometheusMeter
from wmpo_ray.runs.trackers.prometheus import PrometheusTracker

FRAME = np.zeros((1, 2, 2, 3), np.uint8)
STARTS = [StartState(FRAME, "go", i, task) for i, task in enumerate(["pocket", "push"] * 20)]


def trained_ledger(solved: int) -> Ledger:
    """One update in which every group of the starts with an even number, those of "pocket", was solved."""
    ledger = Ledger(None)
    for attempt in range(solved):
        key = (0, attempt)
        success = [1] * 8 if attempt % 2 == 0 else [1, 0] * 4
        ledger.append(State.ISSUED, key, start=attempt)
        ledger.append(State.IMAGINED, key)
        ledger.append(State.SCORED, key, success=success)
        ledger.append(State.ADMITTED, key)
        ledger.append(State.TRAINED, key)
    return ledger


def drawn(draw: str, ledger: Ledger, num: int, weights: str = "[1.0,1.0]") -> list[str]:
    config = load_config("two-tasks", [f"rollout.task_draw={draw}", f"environment.task_weights={weights}"])
    order = StartOrder(config, ledger, STARTS).of(1, 1)
    assert len(order) == len(STARTS)
    return [STARTS[i].task for i in order[:num]]


def test_groups_are_shared_among_tasks_by_weight_or_by_what_they_teach():
    ledger = trained_ledger(40)
    assert drawn("weight", ledger, 20).count("push") == 10
    assert drawn("weight", ledger, 20, "[3.0,1.0]").count("push") == 5
    assert drawn("signal", ledger, 20).count("push") >= 18, "the other task is solved"
    assert drawn("signal", Ledger(None), 20).count("push") == 10, "nothing is known yet"
    assert drawn("signal", ledger, 20) == drawn("signal", trained_ledger(40), 20), "of the ledger alone"


def test_one_task_is_drawn_as_it_ever_was():
    starts = [replace(start, task="") for start in STARTS]
    order = StartOrder(load_config("demo"), Ledger(None), starts).of(3, 3)
    assert np.array_equal(order, np.random.default_rng(seed_for(0, "starts", 3)).permutation(40))


def test_real_success_and_labels_of_each_task():
    success, tasks = np.array([True, False, False, True]), ["a", "b", "b", "b"]
    metrics = success_metrics(success, tasks)
    assert metrics["real/success_rate"] == 0.5 and metrics["task/a/real_success_rate"] == 1.0
    assert metrics["task/b/real_success_low"] == wilson_interval(1, 3)[0]
    assert success_metrics(success).keys() == {"real/success_rate", "real/success_low", "real/success_high"}
    labels = np.array([[True, False, False, True], [True, True, False, True]])
    found = label_metrics(LabelledRollouts(labels, np.array(tasks)))
    assert found["task/a/label_agreement_rate"] == 1.0
    assert found["task/b/label_agreement_rate"] == pytest.approx(2 / 3)
    unknown = LabelledRollouts(labels, np.full(4, ""))
    assert label_metrics(unknown).keys() == {"real/label_agreement", "real/false_positive_rate"}


def test_live_metrics_have_the_task_as_a_label():
    meter = PrometheusMeter("run")
    tracker, once = PrometheusTracker(meter), {"task/push/admitted_groups": 3.0, "task/push/keep_rate": 0.25}
    for _ in range(2):
        tracker.log("optimize", 1, once | {"task/push/unheard_of": 1.0, "time/driver_s": 1.0})
    labels = {"run": "run", "task": "push"}
    assert meter.registry.get_sample_value("ray_wmpo_task_keep_rate", labels) == 0.25
    admitted = meter.registry.get_sample_value("ray_wmpo_task_groups_total", labels | {"outcome": "admitted"})
    assert admitted == 6


def test_the_report_has_a_row_for_each_task_and_says_which_is_left_out():
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "num": 64}
    summary = fake_summary()
    assert "left out" not in str(result_section(RunData(name="run", summary=summary)))
    summary["stages"]["evaluate"]["metrics"] |= {"tasks_base": {"push": rate}, "tasks_final": {"push": rate}}
    summary["stages"]["gate"]["metrics"] |= {
        "tasks": {"push": {"label_agreement": 0.75, "f1": 0.7}},
        "left_out": {"push": "f1 0.700 < gate.min_f1=0.85"},
    }
    text = str(result_section(RunData(name="run", summary=summary)))
    assert "push, left out: f1 0.700" in text and "push" in text and "75.0%" in text
    assert "The gate left push out" in str(header(RunData(name="run", summary=summary)))
    gate = summary["stages"]["gate"]["metrics"]
    assert "0 of 1 tasks keep the bounds" in str(gate_section(RunData(name="run", summary=summary)))
    gate |= {"missed": gate.pop("left_out"), "left_out": {}}
    text = str(result_section(RunData(name="run", summary=summary)))
    assert "kept by --force" in text and "left out" not in text
