"""Runs that go on with other settings: they end with the bits of a run that had those settings from the beginning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import stage_labels
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.store import load_episodes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

THREE = ["grpo.num_updates=3", "filter.max_staleness=0"]


class Killed(BaseException):
    """What nothing in a run survives."""


def run(folder: Path, *settings: str, **options) -> dict:
    return run_pipeline(load_config("smoke", settings), folder, serial=True, **{"resume": True, **options})


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def events(folder: Path, name: str) -> dict[str, str]:
    """stage -> text of its event of that name; the last one counts."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {line["stage"]: line["text"] for line in lines if line["event"] == name}


@pytest.fixture(scope="module")
def three_updates(gated_run, tmp_path_factory) -> Path:
    """A run that had three updates from the beginning."""
    folder = gated_run.copy(tmp_path_factory.mktemp("runs") / "three", *THREE)
    run(folder, *THREE)
    return folder


def test_more_updates_end_with_the_bits_of_a_run_that_had_them_from_the_beginning(whole_run, three_updates, tmp_path):
    folder = whole_run.copy(tmp_path / "run")
    untouched = {name: files(folder / "models" / name) for name in ("base-policy", "world-model", "reward-model")}
    with pytest.raises(UserError, match=r"optimize \(grpo.num_updates: 2 -> 3\).*--resume"):
        run(folder, *THREE, resume=False)
    summary = run(folder, *THREE, "evaluation.num_starts=8")
    assert files(folder / "models" / "policy") == files(three_updates / "models" / "policy")
    assert {name: files(folder / "models" / name) for name in untouched} == untouched
    assert summary["stages"]["optimize"]["metrics"]["resumed_from"] == 2
    trained = [line["update"] for line in JsonlTracker.read(folder) if "policy/loss" in line]
    assert trained == [1, 2, 3]
    assert summary["result"]["final_success"]["num"] == 8
    assert "evaluation.num_starts: 16 -> 8" in events(folder, "stage.redone")["evaluate"]


def test_a_stage_that_is_redone_leaves_the_old_result_until_the_new_one_is_there(
    whole_run, three_updates, tmp_path, monkeypatch
):
    """Three updates become two of another learning rate: killed on the way, the old settings find everything again."""
    folder = tmp_path / "run"
    (tmp_path / "run").mkdir()
    for name, data in files(three_updates).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    before = {name: data for name, data in files(folder).items() if name.split("/")[0] in ("checkpoints", "models")}
    other = ["grpo.learning_rate=1e-3", "grpo.num_updates=1"]

    def kill(folder: RunFolder, stage: str, *args) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", kill)
        with pytest.raises(Killed):
            run(folder, *other, until="optimize")
    assert (folder / "replaced" / "optimize" / "ledger.jsonl").exists()
    assert files(folder / "models" / "policy") != files(three_updates / "models" / "policy")
    with pytest.raises(UserError, match="optimize stopped in the middle"):
        run(folder, *other, resume=False, until="optimize")
    run(folder, *THREE)
    kept = {name: data for name, data in files(folder).items() if name.split("/")[0] in ("checkpoints", "models")}
    assert kept == before and "checkpoints/latest" in before
    run(folder, *other, until="optimize")
    assert not list((folder / "replaced").iterdir())
    assert RunFolder(folder).metrics("optimize")["num_updates"] == 1


def test_what_a_message_advises_can_be_done_with_the_work_that_is_there(gated_run, tmp_path):
    """The queue advises to raise rollout.max_attempts or to lower rollout.groups_per_update."""
    folder = gated_run.copy(tmp_path / "run", "rollout.max_attempts=4", "filter.min_mean=1.0", "grpo.num_updates=1")
    narrow = ["rollout.max_attempts=4", "filter.min_mean=1.0", "grpo.num_updates=1"]
    with pytest.raises(UserError, match=r"--resume.*rollout.max_attempts"):
        run(folder, *narrow)
    with pytest.raises(UserError, match=r"rollout.max_attempts"):
        run(folder, *narrow, "rollout.max_attempts=8")
    assert len((folder / "ledger.jsonl").read_text().splitlines()) > 8, "what was imagined for four groups is kept"
    run(folder, "grpo.num_updates=1", "rollout.groups_per_update=2", until="optimize")
    assert events(folder, "stage.redone").keys() == {"optimize"}


def test_a_stage_alone_names_what_must_be_redone_before_it(whole_run, tmp_path):
    folder = whole_run.copy(tmp_path / "run")
    with pytest.raises(UserError, match=r"stage gate needs reward-model \(reward.steps: 120 -> 10\) first"):
        run(folder, "reward.steps=10", only="gate")
    assert run(folder, only="gate")["stages"]["gate"]["metrics"]["passed"]


def test_a_second_round_begins_with_what_the_first_one_left(whole_run, tmp_path):
    settings = ["recipe.rounds=2", "grpo.num_updates=2"]
    folder = whole_run.copy(tmp_path / "run")
    first = files(folder / "models")
    summary = run(folder, *settings, until="world-model-2")
    assert files(folder / "models") == first
    round_two = folder / "rounds" / "2"
    collected, earlier = (load_episodes(path / "trajectories" / "collect.parquet") for path in (round_two, folder))
    assert set(collected.seeds.tolist()).isdisjoint(earlier.seeds.tolist())
    before = summary["stages"]["world-model-2"]["metrics"]["psnr_db_before"]
    assert before != summary["stages"]["world-model"]["metrics"]["psnr_db_before"]
    assert files(round_two / "models" / "world-model") != files(folder / "models" / "world-model")
    assert summary["recipe"]["stages"][-2:] == ["optimize-2", "evaluate-2"]
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"


def test_the_best_policy_is_what_a_run_ends_with_where_that_is_wanted(gated_run, tmp_path):
    """The last one of a run that keeps the last: training is the same, and wanting the other one trains again."""
    best = "evaluation.final_policy=best"
    folder = gated_run.copy(tmp_path / "run", best)
    metrics = run(folder, best)["stages"]["optimize"]["metrics"]
    update = metrics["best"]["update"]
    assert metrics["policy_update"] == update and metrics["num_updates"] == 2
    kept = folder / "checkpoints" / "best" / f"update-{update:06d}" if update else folder / "models" / "base-policy"
    assert files(folder / "models" / "policy") == files(kept)
    more = run(folder, best, "grpo.num_updates=3", until="optimize")["stages"]["optimize"]["metrics"]
    assert more["resumed_from"] == 2 and more["best"]["value"] >= metrics["best"]["value"]
    with pytest.raises(UserError, match=r"optimize \(evaluation.every_updates: 1 -> 2\)"):
        run(folder, best, "grpo.num_updates=3", "evaluation.every_updates=2", resume=False)
    with pytest.raises(UserError, match=r'without evaluation.final_policy = "best"'):
        run(folder, "grpo.num_updates=3", resume=False)


def test_config_and_records_agree_after_a_refusal(whole_run, tmp_path):
    folder = whole_run.copy(tmp_path / "run")
    with pytest.raises(UserError):
        run(folder, "reward.steps=10", resume=False)
    assert (folder / "config.json").read_text() == config_to_json(load_config("smoke"))
    summary = run(folder, resume=False)
    assert summary["stages"].keys() == set(stage_labels(load_config("smoke")))


def test_a_stage_alone_makes_no_folder_where_nothing_is(tmp_path):
    out = tmp_path / "new"
    with pytest.raises(UserError, match=r"stage policy needs demos first; run them, or `wmpo run` for all"):
        run_pipeline(load_config("smoke"), out, serial=True, only="policy")
    assert not out.exists()
