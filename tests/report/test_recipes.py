"""Reports of recipes other than WMPO, and of several rounds, name what the run had and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.cli.tables import print_summary
from cluster.recipes.recipe_table import RECIPES, stage_labels
from tests.support.fake_run import fake_metrics, fake_summary
from tests.support.report_page import Page
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config
from wmpo_ray.report.html import write_report
from wmpo_ray.report.recipe_view import NAMES
from wmpo_ray.report.style import STYLE
from wmpo_ray.watch.comparison import compare_runs, comparison_tables
from wmpo_ray.watch.comparison_page import render_comparison
from wmpo_ray.watch.run_status import read_status
from wmpo_ray.watch.status_view import frame

IMAGINED = ("imagin", "World model", "World-model", "Reward model", "The gate", "both worlds", "WMPO", "exploitation")
OTHERS = {"grpo-online": "GRPO policy", "dpo": "DPO policy", "bc-real": "BC policy"}


def write_run(folder: Path, kind: str, rounds: int = 1) -> Path:
    """A finished run of a recipe: the fake one, less what the recipe does not have."""
    config = load_config("demo", (f"recipe.kind={kind}", f"recipe.rounds={rounds}"))
    stages = stage_labels(config)
    summary = fake_summary()
    summary["recipe"] = {"kind": kind, "stages": list(stages)}
    summary["stages"] = {name: stage for name, stage in summary["stages"].items() if name in stages}
    lines = fake_metrics() if kind == "wmpo" else [_without_imagination(line, kind) for line in fake_metrics()]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_to_json(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _without_imagination(line: dict[str, Any], kind: str) -> dict[str, Any]:
    line = {key.replace("imagined/success_rate", "rollout/success_rate"): value for key, value in line.items()}
    absent = ("imagined/", "real/label", "time/score") if kind == "grpo-online" else ("rollout/", "imagined/", "queue/")
    return {key: value for key, value in line.items() if not key.startswith(absent)}


def shown(page: str) -> str:
    """The texts of a page without its style sheet."""
    return Page(page).text.replace(STYLE, "")


def printed(*parts: Any) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(*parts)
    return " ".join(console.export_text().split())


def test_every_recipe_has_a_name():
    assert NAMES.keys() == RECIPES.keys()


@pytest.mark.parametrize(("kind", "policy"), OTHERS.items())
def test_a_recipe_without_imagination_is_not_described_as_wmpo(tmp_path: Path, kind: str, policy: str):
    folder = write_run(tmp_path / "run", kind)
    text = shown(write_report(folder).read_text(encoding="utf-8"))
    assert f"{policy} in the real environment" in text and NAMES[kind].title in text
    assert "Training raised real success" in text
    assert [text[max(0, text.find(word) - 40) :][:90] for word in IMAGINED if word in text] == []
    assert ("Verdicts of the queue" in text) == (kind == "grpo-online")
    assert ("Rollout success against real success" in text) == (kind == "grpo-online")
    status = printed(frame(read_status(folder)))
    assert policy in status and "imagined" not in status and ("rollout" in status) == (kind == "grpo-online")


def test_what_dpo_learns_is_charted(tmp_path: Path):
    folder = write_run(tmp_path / "run", "dpo")
    assert "Preference accuracy" not in shown(write_report(folder).read_text(encoding="utf-8"))
    lines = [{"update": n, "policy/loss": 0.7 / n, "preference/accuracy": 1 - 0.5 / n} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Preference accuracy" in shown(page) and "0.35" in shown(page) and "0.75" in shown(page)


def test_time_of_rollouts_is_not_called_imagination(tmp_path: Path):
    page = write_report(write_run(tmp_path / "run", "grpo-online")).read_text(encoding="utf-8")
    assert "rollout: " in page and "imagine: " not in page


def test_the_table_that_ends_a_run_names_the_recipe(capsys: pytest.CaptureFixture[str]):
    for kind, short in (("dpo", "DPO"), ("wmpo", "WMPO"), ("own", "own")):
        print_summary(Console(width=120), fake_summary() | {"recipe": {"kind": kind, "stages": []}})
        assert f"│ {short} " in capsys.readouterr().out


def test_curves_of_several_rounds_say_their_round(tmp_path: Path):
    one, two = write_run(tmp_path / "one", "wmpo"), write_run(tmp_path / "two", "wmpo", rounds=2)
    note = "of round 1 of 2; the result compares the first base policy with the policy of round 2."
    for folder, has_rounds in ((one, False), (two, True)):
        assert (" · 2 rounds" in write_report(folder).read_text(encoding="utf-8")) == has_rounds
        assert ("round 1 of 2" in printed(frame(read_status(folder)))) == has_rounds
    comparison = compare_runs(one, two)
    for text in (render_comparison(comparison), printed(comparison_tables(comparison))):
        assert text.count(note) == 1


def test_a_report_of_rounds_has_every_round_and_success_by_round(tmp_path: Path):
    folder = write_run(tmp_path / "run", "wmpo", rounds=2)
    summary = json.loads((folder / "summary.json").read_text())
    rates = {"": 0.47, "-2": 0.58}
    for suffix, rate in rates.items():
        success = {"value": rate, "low": rate - 0.04, "high": rate + 0.04, "num": 512}
        summary["stages"][f"evaluate{suffix}"] = {"seconds": 1.0, "metrics": {"success": success}}
        best = {"update": 5, "metric": "real/success_rate", "value": 0.625}
        summary["stages"][f"optimize{suffix}"] = {"seconds": 1.0, "metrics": {"best": best, "policy_update": 15}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "rounds" / "2").mkdir(parents=True)
    lines = [{**line, "imagined/success_rate": 0.0123} for line in fake_metrics(3)]
    (folder / "rounds" / "2" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(folder).read_text(encoding="utf-8")
    text = shown(page)
    for words in ("Real success by round", "Success by update, round by round", "Before the round", "47.0%", "58.0%"):
        assert words in text
    assert page.count('class="round"') == 2 and page.count('class="round" open=""') == 1
    assert text.count("Highest real success on the way: 62.5% after update 5") == 2
    status = read_status(folder)
    assert (status.current.round, status.to_json()["curves"]["imagined/success_rate"][0]) == (2, [1.0, 0.0123])
    assert "round 2 of 2" in printed(frame(status))


def test_recipes_are_compared_by_what_each_of_them_has(tmp_path: Path):
    wmpo, online = write_run(tmp_path / "wmpo", "wmpo"), write_run(tmp_path / "online", "grpo-online")
    dpo, cloning = write_run(tmp_path / "dpo", "dpo"), write_run(tmp_path / "cloning", "bc-real")
    assert "Success in training" in render_comparison(compare_runs(wmpo, online))
    assert "Rollout success" in render_comparison(compare_runs(online, dpo))
    page = render_comparison(compare_runs(dpo, cloning))
    assert "queue" not in shown(page) and "imagined" not in shown(page)
