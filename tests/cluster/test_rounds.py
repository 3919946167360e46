"""Lifelong rounds: interrupted anywhere, nothing that is done is repeated; more rounds go on with a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.events.progress import Reporter
from cluster.events.run_log import FolderLog
from cluster.recipes.context import RunContext
from cluster.recipes.pipeline import run_pipeline
from cluster.runtimes.serial_runtime import SerialRuntime
from wmpo_ray.config.loading import load_config
from wmpo_ray.data.store import load_episodes
from wmpo_ray.report.html import write_report
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.outcomes import POLICIES, outcomes_file, read_outcomes, run_outcomes_file

TWO = ("recipe.rounds=2",)


class Killed(BaseException):
    """What nothing in a run survives."""


def run(folder: Path, *settings: str, **options) -> dict:
    return run_pipeline(load_config("smoke", settings), folder, serial=True, **{"resume": True, **options})


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def skipped(folder: Path) -> list[str]:
    """Stages that the last command found done."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["stage"] for line in lines if line["event"] == "stage.skipped"]


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of two rounds, and a copy that was killed after the first of two updates of the second round."""
    folder = whole_run.copy(tmp_path_factory.mktemp("rounds") / "straight")
    run(folder, *TWO, until="gate-2")
    killed = folder.with_name("killed")
    shutil.copytree(folder, killed)
    with pytest.MonkeyPatch.context() as patch:

        def kill(log: FolderLog, update: int, values: dict[str, float]) -> None:
            if "policy/loss" in values:
                raise Killed

        patch.setattr(FolderLog, "metrics", kill)
        with pytest.raises(Killed):
            run(killed, *TWO)
    run(folder, *TWO)
    return folder, killed


def test_a_run_killed_in_the_second_round_ends_with_the_same_weights_and_repeats_nothing(finished):
    straight, killed = finished
    before = files(killed / "rounds" / "2" / "trajectories") | files(killed / "models")
    (killed / "events.jsonl").unlink()
    summary = run(killed, *TWO)
    assert skipped(killed) == summary["recipe"]["stages"][: summary["recipe"]["stages"].index("optimize-2")]
    assert files(killed / "rounds" / "2" / "trajectories") | files(killed / "models") == before
    assert summary["stages"]["optimize-2"]["metrics"]["resumed_from"] == 1
    for name in ("models/policy", "outcomes/final.json"):
        ours, theirs = (path / "rounds" / "2" / name for path in (killed, straight))
        assert (files(ours) if ours.is_dir() else ours.read_bytes()) == (
            files(theirs) if theirs.is_dir() else theirs.read_bytes()
        )


def test_every_round_is_evaluated_on_the_same_starts_against_the_first_base(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    base, first = (read_outcomes(outcomes_file(folder, policy)) for policy in POLICIES)
    second = read_outcomes(outcomes_file(folder / "rounds" / "2", "final"))
    assert base.starts == first.starts == second.starts and second.sampling_key == base.sampling_key
    assert second == read_outcomes(run_outcomes_file(folder, "final")), "a run's result is its newest round's"
    assert summary["result"]["base_success"] == base.rate and summary["result"]["final_success"] == second.rate
    assert summary["stages"]["evaluate"]["metrics"]["success"] == first.rate


def test_the_models_of_a_round_learn_from_the_episodes_of_all_rounds(finished):
    folder, _ = finished
    one, two = (load_episodes(path / "trajectories" / "collect.parquet") for path in (folder, folder / "rounds" / "2"))
    context = RunContext(load_config("smoke", TWO), RunFolder(folder), Reporter(), SerialRuntime, False, round=2)
    train, validation = context.collected()
    assert train.seeds.tolist() + validation.seeds.tolist() == one.seeds.tolist() + two.seeds.tolist()
    assert set(validation.seeds) <= set(two.seeds)


def test_more_rounds_go_on_with_a_finished_run_and_the_report_has_all_of_them(finished):
    folder, _ = finished
    three = (*TWO, "recipe.rounds=3")
    (folder / "events.jsonl").unlink()
    summary = run(folder, *three, resume=False, until="collect-3")
    assert skipped(folder) == summary["recipe"]["stages"][: summary["recipe"]["stages"].index("collect-3")]
    assert len(load_episodes(folder / "rounds" / "3" / "trajectories" / "collect.parquet")) == 32
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Real success by round" in page
    assert all(f"Round {number}" in page for number in (1, 2))
