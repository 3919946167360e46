"""`wmpo fidelity`: what it writes, what it prints, and what it refuses; and the section of the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.measurable_run import write_measurable_run
from tests.support.report_page import Page
from wmpo_ray.fidelity.metrics import FIDELITY, SOURCES
from wmpo_ray.report.html import write_report
from wmpo_ray.report.model_sections import fidelity_section
from wmpo_ray.report.run_data import RunData
from wmpo_ray.runs.folder import RunFolder

METRICS = {"psnr_db", "ssim", "object_error", "object_lost", "agent_error", "label_agreement"}


def wmpo(*arguments: object):
    return CliRunner().invoke(app, ["fidelity", *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, str]:
    """(folder of a run that was measured, what was printed)."""
    folder = write_measurable_run(tmp_path_factory.mktemp("measured") / "run")
    result = wmpo(folder)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.fixture
def run(measured, tmp_path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(measured[0], tmp_path / "run"))


def test_it_writes_every_figure_beside_its_calibration(measured):
    folder, _ = measured
    content = json.loads((folder / FIDELITY).read_text())
    assert set(content["metrics"]) == METRICS and content["num_episodes"] == 8 and content["horizon"] == 8
    for metric in content["metrics"].values():
        assert set(metric["of"]) == set(SOURCES) and set(metric["drift"]) == {"slope", "bound", "passed"}
        for curve in metric["of"].values():
            assert all(len(curve[key]) == 8 for key in ("by_step", "low_by_step", "high_by_step"))
            assert curve["low"] <= curve["value"] <= curve["high"]
    assert content["positions_from_simulator"] == 1 and set(content["missing"]) == {"lpips"}
    assert sum(map(sum, content["failures"]["confusion"]["imagined"])) == 8
    assert content["made_from"] == {stage: f"key of {stage}" for stage in ("collect", "world-model", "reward-model")}


def test_it_prints_tables_and_says_what_is_missing(measured):
    folder, printed = measured
    assert all(text in printed for text in ("PSNR (dB)", "SSIM", "action-following error (pixels)", "wrong pocket"))
    assert "No LPIPS: name a file of its weights with --lpips or $WMPO_LPIPS; none is downloaded." in printed
    assert str(folder / FIDELITY) in printed and str(folder / "report" / "index.html") in printed


def test_json_is_what_was_written_and_the_same_each_time(run):
    before = (run / FIDELITY).read_text()
    result = wmpo(run, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout) == json.loads(before)
    assert (run / FIDELITY).read_text() == before


def test_fewer_episodes_are_measured_where_fewer_are_asked_for(run):
    assert json.loads(wmpo(run, "--json", "--num-episodes", 3).stdout)["num_episodes"] == 3


def test_the_page_shows_what_was_measured(measured):
    page = Page((measured[0] / "report" / "index.html").read_text())
    content = json.loads((measured[0] / FIDELITY).read_text())
    assert "How true are the imagined videos?" in page.text and "No LPIPS" in page.text
    values = {float(datum["value"]) for datum in page.all("data")}
    for metric in content["metrics"].values():
        assert {metric["of"][source]["value"] for source in SOURCES} <= values
    assert "measure it again" not in page.text


def test_a_page_without_measurement_has_no_section_and_one_of_earlier_models_says_so(run):
    content = json.loads((run / FIDELITY).read_text())
    content["made_from"]["world-model"] = "another"
    (run / FIDELITY).write_text(json.dumps(content))
    assert "Of an earlier world model" in Page(write_report(run).read_text()).text
    (run / FIDELITY).unlink()
    assert "How true are the imagined videos?" not in write_report(run).read_text()


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [None], {"value": "x"}, [[1]], True, 1e400])
def test_any_value_in_place_of_another_makes_a_section(measured, value):
    content = json.loads((measured[0] / FIDELITY).read_text())
    content["metrics"] = {"ssim": content["metrics"]["ssim"]}  # the others are shown in the same way

    def spoiled(data: Any, depth: int):
        """The content with one entry replaced, for every key down to `depth`."""
        for key in data if isinstance(data, dict) else ():
            yield {**data, key: value}
            if depth:
                yield from ({**data, key: inner} for inner in spoiled(data[key], depth - 1))

    num_sections = sum(fidelity_section(RunData("run", fidelity=one)) is not None for one in spoiled(content, 3))
    assert num_sections > 50


def test_a_damaged_file_is_named_on_the_page(run):
    (run / FIDELITY).write_text('{"metrics": ')
    assert "fidelity.json is not readable as JSON" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("done", "options", "told"),
    [
        (("demos", "policy", "collect"), (), "has no world model yet: its stages collect and world-model must be done"),
        (("collect", "world-model"), ("--round", 2), "has no world model yet in round 2"),
        (("collect", "world-model"), ("--lpips", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, done, options, told):
    folder = write_measurable_run(tmp_path / "run", done)
    result = wmpo(folder, *options)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and told in result.stderr
    assert not (folder / FIDELITY).exists()


def test_a_run_in_use_is_left_alone(run):
    before = (run / FIDELITY).read_text()
    with RunFolder.open(run, RunFolder(run).config):
        result = wmpo(run)
    assert result.exit_code == 2 and "in use" in result.stderr
    assert (run / FIDELITY).read_text() == before


def test_without_a_reward_model_the_rest_is_measured(tmp_path):
    folder = write_measurable_run(tmp_path / "run", ("collect", "world-model"))
    content = json.loads(wmpo(folder, "--json").stdout)
    assert set(content["metrics"]) == METRICS - {"label_agreement"} and "failures" not in content
    assert "reward-model is not done" in content["missing"]["labels"]


def test_a_recipe_without_imagination_has_nothing_to_measure(tmp_path):
    folder = write_measurable_run(tmp_path / "run", ("collect",))
    summary = json.loads((folder / "summary.json").read_text())
    summary["recipe"] = {"kind": "dpo", "stages": ["demos", "policy", "collect", "optimize", "evaluate"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    result = wmpo(folder)
    assert result.exit_code == 2 and "has no world model" in result.stderr


def test_the_newest_round_that_has_a_world_model_is_measured(tmp_path):
    done = ("collect", "world-model", "reward-model", "collect-2", "world-model-2")
    folder = write_measurable_run(tmp_path / "run", done, recipe={"rounds": 3})
    second = folder / "rounds" / "2"
    for name in ("models", "trajectories"):
        shutil.copytree(folder / name, second / name)
    content = json.loads(wmpo(folder, "--json").stdout)
    assert content["round"] == 2 and content["seed"] != 0 and (second / FIDELITY).is_file()
    assert not (folder / FIDELITY).exists()
    assert json.loads(wmpo(folder, "--json", "--round", 1).stdout)["round"] == 1 and (folder / FIDELITY).is_file()
