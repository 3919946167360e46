"""The comparisons: cells that differ only in what they are about, and sums that follow from their files."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence import cells as cell_files
from benchmarks.evidence import page_parts
from benchmarks.evidence.costs import cost_of, first_update
from benchmarks.evidence.plan import ALL, BUDGET, METHODS, REFERENCE, SEEDS, Cell, cells
from benchmarks.evidence.results import best_baseline, imagined_real_gaps, lead, result_of, trust_pairs
from benchmarks.evidence.summary import summarize
from cluster.recipes.recipe_table import recipe_of
from wmpo_ray.config.loading import load_config

BASE, GOOD = "0110" * 8, "1110" * 8


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results of a few invented cells, in a folder of their own."""
    monkeypatch.setattr(cell_files, "CELLS", tmp_path / "evidence")
    monkeypatch.setattr(page_parts, "PAGE", tmp_path / "evidence.md")
    monkeypatch.setattr(page_parts, "PICTURES", tmp_path / "evidence")
    monkeypatch.setattr("benchmarks.results_file.RESULTS_DIR", tmp_path)
    invented = {"wmpo": GOOD, "dpo": BASE, "dpo-fast": "0000" * 8, "refute": BASE, "wmpo-rounds": GOOD}
    for method, final in {**invented, REFERENCE: GOOD, "token-ratio": BASE}.items():
        for seed in (0, 1):
            write(Cell(method, BUDGET, seed), final)
    return tmp_path


def write(cell: Cell, final: str) -> None:
    policies = {
        name: {
            "success": bits,
            "lengths": [20 if bit == "1" else 32 for bit in bits],
            "failures": {"miss": "1100" * 8, "drop": "0000" * 8},
        }
        for name, bits in (("base", BASE), ("final", final))
    }
    outcomes = {"seeds": list(range(32)), "temperature": 1.0, "policies": policies}
    curves = {
        "imagined/success_rate": [[1, 0.5], [2, 0.6], [3, 0.9]],
        "real/success_rate": [[0, 0.5], [1, 0.55], [2, 0.8]],
    }
    content = {
        "machine": "a processor",
        "cell": {"budget": cell.budget},
        "core_seconds": 100.0,
        "shared_core_seconds": 50.0,
        "stage_seconds": {"optimize": 90.0},
        "num_updates": 4,
        "rounds": [BASE, final],
        "disrupted": dict.fromkeys(("position", "background", "texture"), outcomes),
        "gate": {"label_agreement": 0.9},
        "reward_model": {"f1": 0.97},
        "sampled": outcomes,
        "greedy": outcomes,
        "imagined": {"temperature": 1.0, "base": "0000", "final": "1111"},
        "curves": curves,
    }
    path = cell_files.path_of(cell)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("method", ALL)
def test_every_cell_is_a_run_that_can_begin(method):
    for budget in (max(32, ALL[method].min_budget), 512):
        config = load_config("demo", Cell(method, budget, 1).settings)
        recipe_of(config)
        assert config.collect.num_trajectories == budget and config.seed == 1
        if config.rollout.world == "environment":
            assert config.rollout.max_trajectories == budget, "its real episodes end where the others' do"
        assert config.reward.verify.enabled == (ALL[method].base == "verified")


def test_cells_come_in_order_of_importance():
    names = [(cell.method, cell.budget) for cell in cells()]
    assert [name for name, budget in names if budget == BUDGET] == [name for name in ALL for _ in SEEDS]
    assert {budget for _, budget in names[len(ALL) * len(SEEDS) :]} == {32, 64, 512}
    assert len(cells(["wmpo"], (128,), (0,))) == 1


def test_a_lead_is_of_the_same_seeds_and_starts(folder):
    ours, other = result_of("wmpo"), best_baseline()
    assert ours.gain.value == pytest.approx(25.0) and other.method == "dpo"
    found = lead(ours, other)
    assert found.points.value == pytest.approx(25.0) and found.seeds == (0, 1)
    assert found.p_value == pytest.approx(2 * 0.5**16), "16 starts of 64 differ, all of them for one side"
    assert ours.length_ratio == 1.0 and imagined_real_gaps(ours) == pytest.approx([25.0, 25.0])
    assert trust_pairs(ours)[:2] == [(0, 0, 0.5, 0.5), (0, 1, 0.6, 0.55)]


def test_the_summary_holds_what_the_cells_say_and_what_is_missing(folder):
    figures_path, page = summarize()
    figures = json.loads(figures_path.read_text())["figures"]
    assert figures["gain_points"]["value"] == pytest.approx(25.0) and figures["reward_f1"]["value"] == 0.97
    assert figures["lead_over_best_baseline_points"]["baseline"] == "dpo"
    assert figures["lifelong_rounds"]["value"] == pytest.approx([0.5, 0.5, 0.75])
    assert figures["wmpo/p128/success_texture"]["value"] == 0.75
    text = page.read_text()
    for name in ("gains", "verification", "ablations", "rounds", "trust", "curves"):
        assert f"evidence/{name}.svg" in text and (folder / "evidence" / f"{name}.svg").read_text().startswith("<svg ")
    assert "Not run at P = 128 yet: " in text and all(name in text for name in METHODS if name.startswith("grpo"))


def test_without_cells_there_is_nothing_to_sum_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cell_files, "CELLS", tmp_path)
    assert summarize() == []


def test_recovery_counts_successes_after_a_failed_attempt(folder):
    """Of "1110" with attempts failed in "1100": two of four, and both end well; of "0110" one of them."""
    ours = result_of("wmpo")
    assert ours.recovery("final") == (32, 32, 64) and ours.recovery("base").share == 0.5


def test_costs_are_read_where_the_curve_crosses_the_gain(folder):
    assert first_update([[0, 0.5], [1, 0.55], [2, 0.8]], 0.1) == pytest.approx(1.2)
    assert first_update([[0, 0.5], [1, 0.55]], 0.1) is None
    cost = cost_of(result_of("wmpo"), 10)
    assert (cost.reached, cost.seeds, cost.real_episodes) == (2, 2, BUDGET)
    assert cost.core_seconds == pytest.approx(50 + 100 * 1.2 / 4), "of four updates 1.2 were needed"
    assert cost_of(result_of("wmpo"), 40).reached == 0


def test_a_run_of_several_rounds_goes_on_from_the_run_that_it_repeats():
    cell = Cell("wmpo-rounds", BUDGET, 1)
    assert cell.before == Cell(REFERENCE, BUDGET, 1)
    assert set(cell.before.settings) < set(cell.settings), "what is done of it is not done again"
