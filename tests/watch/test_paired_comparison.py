"""Runs that keep the outcome of each start are compared start by start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.support.fake_run import fake_summary
from tests.watch.conftest import write_run
from wmpo_ray.runs.outcomes import POLICIES, Outcomes, outcomes_file, write_outcomes
from wmpo_ray.watch.comparison import MetricRow, compare_runs, comparison_tables
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
