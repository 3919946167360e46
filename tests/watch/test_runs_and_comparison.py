"""The table of runs says what their folders say; a comparison tells chance from difference."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.fake_live import fake_status, write_live
from tests.support.fake_run import fake_metrics, fake_summary
from tests.support.report_page import HOSTILE, Page
from tests.watch.conftest import write_run
from wmpo_ray.core.errors import UserError
from wmpo_ray.watch.comparison import compare_runs, comparison_tables
from wmpo_ray.watch.comparison_page import render_comparison
from wmpo_ray.watch.run_status import Condition
from wmpo_ray.watch.run_table import find_runs, run_table
from wmpo_ray.watch.significance import Rate, compare_rates, difference_interval, gains_test, two_proportion_test


def text_of(renderable, width: int = 200) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        console.print(renderable)
        return console.export_text()


def rate(value: float, num: int = 512) -> Rate:
    half = 1.96 * math.sqrt(value * (1 - value) / max(num, 1))
    return Rate(value, value - half, value + half, num)


def test_planned_updates_are_those_of_the_chosen_algorithm(done: Path):
    config = json.loads((done / "config.json").read_text())
    changed = {**config, "algorithm": {"kind": "dpo"}, "dpo": {"num_updates": 7}}
    (done / "config.json").write_text(json.dumps(changed))
    (row,) = find_runs(done)
    assert row.updates_planned == 7


def test_runs_are_listed_newest_first_with_what_they_reached(running: Path, done: Path):
    folder = running.parent
    for i, run in enumerate((done, running)):
        events = (run / "events.jsonl").read_text().splitlines()
        first = json.dumps({"time": time.time() - 10_000 * (i + 1), "event": "run.started"})
        (run / "events.jsonl").write_text("\n".join([first, *events]))
    (folder / "no run").mkdir()
    (folder / "a file").touch()
    rows = find_runs(folder)
    assert [row.folder.name for row in rows] == ["done", "running"]
    assert rows[0].condition is Condition.DONE and rows[0].final == (0.582, 0.5389, 0.624, 512)
    assert rows[0].seconds == pytest.approx(sum(s["seconds"] for s in fake_summary()["stages"].values()))
    assert rows[0].updates == rows[0].updates_planned == 15 and rows[0].gain_points == 17.18 and rows[0].seed == 3
    assert rows[1].seconds == pytest.approx(20_000, abs=60)
    text = text_of(run_table(rows, time.time()))
    assert all(word in text for word in ("running in optimize", "58.2% [54%, 62%]", "+17.2", "16 GB", "15 of 15"))
    data = json.loads(json.dumps([row.to_json() for row in rows], allow_nan=False))
    assert data[0]["state"] == "done" and data[0]["base"]["num"] == 512 and data[1]["state"] == "running in optimize"


def test_one_run_can_be_named_and_a_missing_folder_is_said(done: Path, tmp_path: Path):
    assert [row.folder for row in find_runs(done)] == [done]
    (tmp_path / "empty").mkdir()
    assert find_runs(tmp_path / "empty") == []
    with pytest.raises(UserError, match="no such folder"):
        find_runs(tmp_path / "nowhere")


@pytest.mark.parametrize(("width", "missing"), [(200, ""), (100, "machine"), (80, "base")])
def test_a_narrow_terminal_loses_whole_columns(running: Path, done: Path, width: int, missing: str):
    text = text_of(run_table(find_runs(done.parent), time.time(), width), width)
    assert "…" not in text and "15 of 15" in text and "+17.2" in text
    assert not missing or missing not in text.splitlines()[0].split()


def test_a_damaged_run_stays_in_the_table(running: Path, done: Path):
    (done / "summary.json").write_text("{")
    (done / "status.json").write_text("{")
    (running / "config.json").write_text("[")
    text = text_of(run_table(find_runs(done.parent), time.time()))
    assert "damaged" in text and "summary.json" in text and "config.json" in text


@pytest.mark.parametrize(
    ("a", "b", "p_value"),
    [((45, 100), (30, 100), 0.0285), ((12, 40), (10, 50), 0.2727), ((5, 10), (5, 10), 1.0), ((0, 10), (0, 20), 1.0)],
)
def test_the_two_proportion_test_gives_known_values(a: tuple[int, int], b: tuple[int, int], p_value: float):
    found = two_proportion_test(*(Rate(k / n, 0, 1, n) for k, n in (a, b)))
    assert found.p_value == pytest.approx(p_value, abs=2e-4) and found.is_significant == (p_value < 0.05)


def test_of_equal_policies_one_pair_in_twenty_seems_to_differ():
    draw = random.Random(0)
    counts = [sum(draw.random() < 0.4 for _ in range(200)) for _ in range(1200)]
    found = [two_proportion_test(*(Rate(k / 200, 0, 1, 200) for k in pair)) for pair in zip(counts[::2], counts[1::2])]
    assert 0.02 < sum(verdict.is_significant for verdict in found) / len(found) < 0.09


def test_without_numbers_the_intervals_decide():
    apart = compare_rates(Rate(0.3, 0.2, 0.4), Rate(0.6, 0.5, 0.7))
    assert apart.is_significant and apart.sentence(0.3) == "B is higher (95% intervals do not overlap)"
    near = compare_rates(Rate(0.3, 0.2, 0.4), Rate(0.4, 0.3, 0.5, 100))
    assert not near.is_significant and "intervals overlap" in near.sentence(0.1)


def test_gains_differ_only_beyond_the_noise_of_four_rates():
    base = rate(0.4)
    assert gains_test(base, rate(0.8), base, rate(0.45)).is_significant
    assert not gains_test(base, rate(0.58), base, rate(0.50)).is_significant
    assert not gains_test(base, rate(0.9, 0), base, rate(0.1)).is_significant
    low, high = difference_interval(base, rate(0.58)) or (0, 0)
    assert low < 0.18 < high and difference_interval(base, rate(0.5, 0)) is None


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "runs" / "other", ("grpo.learning_rate=1e-5", "seed=4"))
    summary = fake_summary()
    summary["result"]["final_success"] |= {"value": 0.5, "low": 0.457, "high": 0.543}
    summary["result"]["gain_points"] = 8.98
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_comparison_says_what_differs(done: Path, other: Path):
    comparison = compare_runs(done, other)
    rows = {row.label: row for row in comparison.rows}
    assert rows["final success"].is_significant and "B is lower (p = 0.0085" in rows["final success"].verdict
    assert not rows["base success"].is_significant and not rows["gain"].is_significant
    assert sorted(key for key, _, _ in comparison.differences) == ["grpo.learning_rate", "seed"]
    text = text_of(comparison_tables(comparison))
    assert all(word in text for word in ("58.2%", "50.0%", "two-proportion test", "grpo.learning_rate", "1e-05"))
    page = Page(render_comparison(comparison))
    assert len(page.all("svg")) == 4 and not page.all("script")
    assert all(word in page.text for word in ("Final success: B is lower", "1e-05", "surplus"))
    tones = [group["class"] for group in page.all("g") if group.get("class")]
    assert tones.count("tone-run-a") == tones.count("tone-run-b") == 5  # four lines and the band of real success


def test_a_run_equals_itself(done: Path):
    comparison = compare_runs(done, done)
    assert not comparison.differences and not any(row.is_significant for row in comparison.rows)
    assert "All settings are equal" in text_of(comparison_tables(comparison))


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [None, b"", b'{"half', b'{"update": 1, "imagined/success_rate": "x"}', b"[]"])
def test_a_damaged_run_is_compared_as_far_as_it_goes(done: Path, tmp_path: Path, name: str, damage: bytes | None):
    broken = tmp_path / "broken"
    shutil.copytree(done, broken)
    (broken / name).unlink() if damage is None else (broken / name).write_bytes(damage)
    comparison = compare_runs(broken, done)
    Page(render_comparison(comparison))
    assert "58.2%" in text_of(comparison_tables(comparison))
    assert name != "config.json" or any("settings cannot be compared" in note for note in comparison.notes)


@pytest.mark.parametrize("value", [None, "x", [], {}, True, float("nan"), -1, 0, 5, 1e29, 10**400])
def test_any_value_in_place_of_a_metric_is_listed_and_compared(done: Path, tmp_path: Path, value: object):
    def replaced(data):
        if isinstance(data, dict):
            return {key: replaced(entry) for key, entry in data.items()}
        return [replaced(entry) for entry in data] if isinstance(data, list) else value

    odd = tmp_path / "odd"
    shutil.copytree(done, odd)
    (odd / "summary.json").write_text(json.dumps(replaced(fake_summary())))
    lines = [{**replaced(line), "update": line["update"]} for line in fake_metrics()]
    (odd / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for pair in ((odd, done), (done, odd), (odd, odd)):
        comparison = compare_runs(*pair)
        text_of(comparison_tables(comparison))
        Page(render_comparison(comparison))
    rows = find_runs(odd)
    json.dumps([row.to_json() for row in rows], allow_nan=False)
    assert "done" in text_of(run_table(rows, time.time()))


def test_names_from_files_are_text_and_nothing_else(done: Path, tmp_path: Path):
    hostile = tmp_path / "hostile"
    shutil.copytree(done, hostile)
    (hostile / "summary.json").write_text(json.dumps(fake_summary() | {"name": HOSTILE}))
    write_live(hostile, fake_status() | {"state": HOSTILE, "stage": HOSTILE})
    page = Page(render_comparison(compare_runs(hostile, done)))
    assert not page.all("script") and HOSTILE in page.text
