"""Runs that keep the outcome of each start are compared start by start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.fake_run import fake_summary
from tests.watch.conftest import write_run
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.outcomes import POLICIES, Outcomes, outcomes_file, write_outcomes
from wmpo_ray.watch.comparison import MetricRow, compare_runs, comparison_tables
from wmpo_ray.watch.seed_comparison import compare_groups, iqm_of, read_group
from wmpo_ray.watch.significance import Rate, paired_test, sequential_sentence, two_proportion_test

STARTS = list(range(3_000_000_000, 3_000_000_100))


def evaluated(
    folder: Path, base: np.ndarray, final: np.ndarray, starts: list[int] = STARTS, environment: str = "e"
) -> Path:
    """A run with the outcome [N] of each start, and a summary that goes with them."""
    write_run(folder)
    rates = {}
    for policy, success in zip(POLICIES, (base, final), strict=True):
        lists = {"starts": starts, "success": success.tolist(), "lengths": [8] * len(starts)}
        outcomes = Outcomes(
            environment=environment, policy="p", temperature=1.0, sampling_key=[0, "evaluate"], failures={}, **lists
        )
        write_outcomes(outcomes_file(folder, policy), outcomes)
        rates[f"{policy}_success"] = outcomes.rate
    gain = 100 * (rates["final_success"]["value"] - rates["base_success"]["value"])
    (folder / "summary.json").write_text(json.dumps(fake_summary() | {"result": rates | {"gain_points": gain}}))
    return folder


def rows_of(a: Path, b: Path) -> dict[str, MetricRow]:
    comparison = compare_runs(a, b)
    with open(os.devnull, "w") as nowhere:
        Console(file=nowhere).print(comparison_tables(comparison))
    return {row.label: row for row in comparison.rows}


@pytest.fixture
def base() -> np.ndarray:
    return np.arange(100) % 5 < 2


@pytest.fixture
def better(base: np.ndarray) -> np.ndarray:
    """Succeeds wherever the base policy does, and from ten other starts."""
    return base | (np.arange(100) % 10 == 4)


def test_a_difference_that_two_rates_do_not_show_is_found_start_by_start(tmp_path, base, better):
    a, b = evaluated(tmp_path / "a", base, base), evaluated(tmp_path / "b", base, better)
    final = rows_of(a, b)["final success"]
    assert final.is_significant and "B is higher (p = 0.002, McNemar" in final.verdict
    assert not two_proportion_test(Rate(0.4, 0, 1, 100), Rate(0.5, 0, 1, 100)).is_significant
    assert final.difference.startswith("+10.0 points [+")
    rows = rows_of(b, a)
    assert (
        "B is lower" in rows["final success"].verdict
        and "A is higher after" in rows["the same, start by start"].verdict
    )
    assert rows["gain"].is_significant and "B is lower (bootstrap" in rows["gain"].verdict
    assert rows["base success"].verdict.startswith("no difference shown with 100 starts (p = 1")


def test_what_is_not_shown_says_how_many_starts_would_be_needed(tmp_path, base):
    final = base.copy()
    final[[2, 3, 7]], final[0] = True, False  # from 3 starts more, from 1 no longer
    row = rows_of(evaluated(tmp_path / "a", base, base), evaluated(tmp_path / "b", base, final))["final success"]
    assert not row.is_significant
    assert row.verdict == (
        "no difference shown with 100 starts (p = 0.62, McNemar's exact test on the same starts); about 790 starts would "
        "be needed for a difference this large"
    )


def test_only_starts_that_both_runs_have_are_compared(tmp_path, base, better):
    a = evaluated(tmp_path / "a", base, base)
    half = evaluated(tmp_path / "half", base[50:], better[50:], STARTS[50:])
    assert "50 starts" in rows_of(a, half)["base success"].verdict
    elsewhere = evaluated(tmp_path / "elsewhere", base, better, environment="another")
    assert "two-proportion test" in rows_of(a, elsewhere)["final success"].verdict
    assert any("different start states" in note for note in compare_runs(a, elsewhere).notes)


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}'])
def test_damaged_outcomes_become_a_note_and_the_rates_are_compared(tmp_path, base, better, content):
    a, b = evaluated(tmp_path / "a", base, base), evaluated(tmp_path / "b", base, better)
    outcomes_file(b, "final").write_text(content)
    assert any("final.json" in note for note in compare_runs(a, b).notes)
    assert "two-proportion test" in rows_of(a, b)["final success"].verdict


def test_a_sequential_test_stops_early_where_the_difference_is_large():
    always, never = np.ones(200, bool), np.zeros(200, bool)
    words = sequential_sentence(never, always).split()
    assert words[:3] == ["B", "is", "higher"] and int(words[4]) < 60
    assert sequential_sentence(always, always) == "undecided after 200 starts"
    assert sequential_sentence(np.zeros(5001, bool), np.zeros(5001, bool)) == ""


def test_equal_outcomes_are_no_difference_whatever_the_number():
    verdict = paired_test(np.ones(30, bool), np.ones(30, bool))
    assert not verdict.is_significant and verdict.needed is None and "needed" not in verdict.sentence(0.0)


def group_of(folder: Path, rates: list[float], seeds: list[int], environment: str = "e") -> Path:
    """A folder of runs, one of each seed."""
    rng = np.random.default_rng(len(folder.name))
    for rate, seed in zip(rates, seeds, strict=True):
        run = evaluated(
            folder / f"{environment}-{seed}", rng.random(100) < 0.4, rng.random(100) < rate, environment=environment
        )
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"seed": seed}))
    return folder


def test_several_seeds_are_compared_as_seeds_and_starts(tmp_path):
    a = group_of(tmp_path / "a", [0.40, 0.45, 0.5, 0.42, 0.48], [0, 1, 2, 3, 4])
    b = group_of(tmp_path / "b", [0.9, 0.95, 0.85, 0.9, 0.92], [4, 3, 2, 1, 0])
    first, second = read_group(a), read_group(b)
    (task,) = compare_groups(first, second).values()
    assert task.is_significant and task.are_seeds_matched and task.num_runs == (5, 5) and task.num_starts == 100
    assert task.interval[0] < task.success[1] - task.success[0] < task.interval[1]
    (swapped,) = compare_groups(second, first).values()
    assert swapped.interval == pytest.approx((-task.interval[1], -task.interval[0]))
    (same,) = compare_groups(first, first).values()
    assert same.interval == pytest.approx((0, 0)) and not same.is_significant
    value, low, high = iqm_of(first)
    assert low <= value <= high and 0.3 < value < 0.6
    result = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert result.exit_code == 0 and "B is higher" in " ".join(result.stdout.split())


def test_the_spread_of_seeds_is_in_the_interval(tmp_path):
    """From other starts of the same seeds the difference would be certain; from other seeds it is not."""
    a = read_group(group_of(tmp_path / "a", [0.5, 0.5, 0.5, 0.5], [0, 1, 2, 3]))
    b = read_group(group_of(tmp_path / "b", [1.0, 1.0, 1.0, 0.0], [4, 5, 6, 7]))
    (task,) = compare_groups(a, b).values()
    assert not task.are_seeds_matched and not task.is_significant and task.success[1] - task.success[0] > 0.2


def test_tasks_are_compared_one_by_one_and_must_be_the_same(tmp_path):
    a = group_of(group_of(tmp_path / "a", [0.5, 0.5], [0, 1]), [0.2, 0.2], [0, 1], environment="f")
    b = group_of(group_of(tmp_path / "b", [0.5, 0.6], [0, 1]), [0.9, 0.9], [0, 1], environment="f")
    assert [task.num_runs for task in compare_groups(read_group(a), read_group(b)).values()] == [(2, 2), (2, 2)]
    result = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert "task 2, mean" in " ".join(result.stdout.split())
    only = group_of(tmp_path / "only", [0.5], [0])
    with pytest.raises(UserError, match="other ones"):
        compare_groups(read_group(a), read_group(only))


def test_a_folder_of_runs_without_outcomes_is_named(tmp_path):
    write_run(tmp_path / "group" / "run")
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "group"), str(tmp_path / "group")])
    assert result.exit_code == 2 and "no run that is evaluated" in result.stderr
