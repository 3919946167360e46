"""The command line: exit codes, one-line errors, tables. The pipeline behind it is a stand-in and has its own tests."""

from __future__ import annotations

import errno
import json
import logging
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.tables import print_summary
from cluster.host.doctor import Verdict, check_library, check_metaworld, check_pusht, check_robosuite, examine
from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.loading import list_presets, load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError

SUMMARY = {
    "stages": {"demos": {"seconds": 1.5}, "optimize": {"seconds": 60.25}},
    "result": {
        "base_success": {"value": 0.40, "low": 0.35, "high": 0.45, "num": 512},
        "final_success": {"value": 0.58, "low": 0.53, "high": 0.63, "num": 512},
        "gain_points": 18.0,
    },
}
# No pretrained files and one denoising step: the smallest plan.
SMALL = ["world_model.pretrained=", "world_model.sampler.num_steps=1"]


def wmpo(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pipeline(monkeypatch):
    """A pipeline that remembers how it was called, returns SUMMARY, and raises `error` if it is set."""
    module = ModuleType("cluster.recipes.pipeline")
    module.calls, module.error = [], None

    def run_pipeline(config, out, **options):
        console = options.pop("console")
        assert console.stderr, "the table alone goes to stdout"
        module.calls.append((config, out, options))
        if module.error is not None:
            raise module.error
        return SUMMARY

    def evaluate_policy(config, out, policy_dir, num_starts, console):
        module.calls.append((config, out, policy_dir, num_starts))
        return {
            "success": SUMMARY["result"]["final_success"],
            "failures": {"jam": 0.175},
            "outcomes": {"success": "101"},
        }

    evaluation = ModuleType("cluster.recipes.evaluate")
    module.run_pipeline, evaluation.evaluate_policy = run_pipeline, evaluate_policy
    html = ModuleType("wmpo_ray.report.html")
    html.write_report = lambda folder: Path(folder) / "report" / "index.html"
    monkeypatch.setitem(sys.modules, "cluster.recipes.pipeline", module)
    monkeypatch.setitem(sys.modules, "cluster.recipes.evaluate", evaluation)
    monkeypatch.setitem(sys.modules, "wmpo_ray.report.html", html)
    return module


def test_run_hands_over_its_arguments_and_ends_with_the_table_and_the_report(pipeline, tmp_path):
    result = wmpo("run", "smoke", "--out", tmp_path, "--resume", "--serial", "--set", "seed=3", "--until", "gate")
    assert result.exit_code == 0, result.output
    ((config, out, options),) = pipeline.calls
    assert config == load_config("smoke", ["seed=3"]) and out == tmp_path
    expected = {"resume": True, "redo": True, "serial": True, "force": False, "until": "gate", "level": logging.INFO}
    assert options == expected
    for part in ("40.0% [35.0%, 45.0%]", "58.0% [53.0%, 63.0%]", "+18.0 points", "optimize", "60.2", "61.8"):
        assert part in result.output
    assert result.output.rstrip().endswith(f"report: {tmp_path}/report/index.html")


def test_stage_runs_that_stage_only(pipeline, tmp_path):
    assert wmpo("stage", "gate", "smoke", "--out", tmp_path, "--force", "--quiet").exit_code == 0
    options = {"resume": False, "redo": False, "serial": False, "force": True, "only": "gate", "level": logging.WARNING}
    assert pipeline.calls[0][2] == options
    assert wmpo("stage", "gate", "smoke", "-q", "-v").exit_code == 2


def test_evaluate_puts_the_disruption_into_the_configuration(pipeline, tmp_path):
    result = wmpo("evaluate", "smoke", "--out", tmp_path, "--disruption", "texture", "--num-starts", 64)
    assert result.exit_code == 0 and "58.0% [53.0%, 63.0%]" in result.output and "17.5%" in result.output
    ((config, _, policy_dir, num_starts),) = pipeline.calls
    assert (config.environment.disruption, policy_dir, num_starts) == ("texture", None, 64)
    assert config.evaluation.temperature == load_config("smoke").evaluation.temperature
    assert not list(tmp_path.iterdir()), "nothing is saved unless it is asked for"


def test_evaluate_takes_a_temperature_and_saves_where_it_is_told(pipeline, tmp_path):
    path = tmp_path / "result.json"
    result = wmpo("evaluate", "smoke", "--out", tmp_path, "--temperature", 0, "--save", path)
    assert result.exit_code == 0, result.output
    assert pipeline.calls[0][0].evaluation.temperature == 0
    saved = json.loads(path.read_text())
    assert saved["success"]["num"] == 512 and saved["outcomes"] == {"success": "101"}
    assert saved["environment"]["disruption"] == "none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "smoke", "--set", "grpo.learning_rat=1"],
            "unknown key grpo.learning_rat; did you mean grpo.learning_r",
        ),
        (["run", "smoke", "--set", "rollout.group_size=1"], "group_size=1: GRPO needs at least 2"),
        (["run", "smok"], "'smok' is neither a preset"),
        (["evaluate", "smoke", "--disruption", "rain"], 'environment.disruption = "rain": it must be'),
        (["evaluate", "smoke", "--temperature", "-1"], "evaluation.temperature = -1.0: it must be"),
        (["evaluate", "smoke", "--save", "/nowhere/x.json"], "--save /nowhere/x.json: there is no folder /nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(pipeline, tmp_path, arguments, message):
    result = wmpo(*arguments, "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    assert not pipeline.calls and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("label agreement 0.61 is below 0.85"), 2, "error: label agreement 0.61 is below 0.85\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "error: a/b: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted: the same command with --resume goes on from here\n"),
    ],
)
def test_what_stops_a_run_becomes_a_line_and_an_exit_code(pipeline, tmp_path, error, code, line):
    pipeline.error = error
    result = wmpo("run", "smoke", "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (code, line)


def test_a_mistake_of_ours_keeps_its_traceback(pipeline, tmp_path):
    pipeline.error = ZeroDivisionError("ours")
    assert wmpo("run", "smoke", "--out", tmp_path).exception is pipeline.error


def test_the_installed_entry_exits_with_2_and_no_traceback():
    command = [sys.executable, "-m", "wmpo_ray", "plan", "demo", "--set", "grpo.ratio=word"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: grpo.ratio = \"word\": it must be 'chunk', 'step' or 'token'\n"


def test_help_names_every_stage_and_command():
    assert "recipe.kind" in wmpo("run", "--help").output
    commands = wmpo("--help").output
    assert all(name in commands for name in ("run", "stage", "evaluate", "report", "plan", "doctor", "presets"))


def test_everything_that_is_chosen_by_its_kind_is_listed():
    lines = dict(line.split(": ") for line in wmpo("presets", "--kinds").output.splitlines())
    assert {key for key in flatten(Config()) if key.endswith(".kind")} == set(lines)
    assert all(value in lines[key].split(", ") for key, value in flatten(Config()).items() if key in lines)


def test_presets_are_listed_and_shown_as_a_file_that_loads_again(tmp_path):
    lines = [line.split(maxsplit=1) for line in wmpo("presets").output.splitlines() if not line.startswith(" ")]
    assert [line[0] for line in lines] == list_presets() and all(len(line) == 2 for line in lines)
    path = tmp_path / "shown.toml"
    path.write_text(wmpo("presets", "smoke").output)
    assert load_config(str(path)) == load_config("smoke")


def test_report_refuses_a_folder_without_a_run(tmp_path):
    result = wmpo("report", tmp_path)
    assert result.exit_code == 2 and "there is no summary.json in it" in result.stderr


# -- plan --------------------------------------------------------------------------------------------------------


def test_plan_prints_its_tables():
    result = wmpo("plan", "smoke", *(f"--set={override}" for override in SMALL))
    assert result.exit_code == 0, result.output
    config = load_config("smoke")
    budget = f"{config.collect.num_trajectories} collected, {config.demos.num_trajectories} demonstrations"
    slots = f"slots: {config.rollout.groups_per_update} groups"
    for part in ("imagination", "GFLOP", "chunks imagined", slots, budget):
        assert part in result.output


def test_a_missing_world_model_is_a_users_error():
    result = wmpo("plan", "smoke", "--set", "world_model.pretrained=no-such-world")
    assert result.exit_code == 2 and "set world_model.pretrained" in result.stderr


def test_a_plan_for_more_than_this_machine_is_printed_and_says_so():
    result = wmpo("plan", "smoke", *(f"--set={override}" for override in [*SMALL, "placement.learner.gpus=64"]))
    assert result.exit_code == 0 and "chunks imagined" in result.output
    assert "not on this machine: the actors ask for 64 GPUs" in result.output and "placement.*.gpus" in result.output


def test_a_plan_names_bounds_company_and_wishes():
    wishes = [
        "cluster.imagination_actors=[1, 4]",
        "placement.layout=collocated",
        "placement.imagination.accelerator_type=H100",
        'placement.reward.labels=["market=spot"]',
    ]
    result = wmpo("plan", "smoke", *(f"--set={override}" for override in [*SMALL, *wishes]))
    assert result.exit_code == 0, result.output
    for part in ("1 to 4", "H100", "market=spot", "reward, learner"):
        assert part in result.output


def test_a_cluster_that_is_not_there_is_a_users_error():
    result = wmpo("plan", "smoke", "--address", "127.0.0.1:1", *(f"--set={override}" for override in SMALL))
    assert result.exit_code == 2 and "nothing answers at 127.0.0.1:1" in result.stderr


# -- doctor ------------------------------------------------------------------------------------------------------


def test_doctor_finds_the_libraries_that_these_tests_run_with(tmp_path):
    checks = {check.name: check for check in examine(with_ray=False, folder=tmp_path)}
    for name in ("Python", "torch", "ray", "diffusers", "transformers", "pyarrow", "rendering"):
        assert checks[name].verdict is Verdict.OK, checks[name]
    assert "16x16x3" in checks["rendering"].detail and re.match(r"[\d.]+ GiB free", checks["disk"].detail)


def test_doctor_exits_with_1_exactly_if_something_fails():
    result = wmpo("doctor", "--no-ray")
    failed = any(check.verdict is Verdict.FAIL for check in examine(with_ray=False))
    assert result.exit_code == int(failed) == int("fails" in result.output)


def test_a_library_that_is_not_installed_fails():
    check = check_library("no_such_library")
    assert check.verdict is Verdict.FAIL and "make setup" in check.detail


def test_a_simulator_may_be_absent_and_fails_where_it_is_broken(monkeypatch):
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert check_pusht().verdict is Verdict.OK and "pip install 'wmpo-ray[pusht]'" in check_pusht().detail
    assert check_robosuite().verdict is Verdict.OK and "EXTRAS=sim" in check_robosuite().detail
    assert check_metaworld().verdict is Verdict.OK and "wmpo-ray[metaworld]" in check_metaworld().detail
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.8")
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    assert check_pusht().verdict is Verdict.FAIL and "needs the module gym_pusht" in check_pusht().detail
    monkeypatch.setitem(sys.modules, "metaworld", None)
    assert check_metaworld().verdict is Verdict.FAIL and "needs the module metaworld" in check_metaworld().detail


def test_versions_that_robosuite_does_not_work_with_are_named(monkeypatch):
    versions = {"robosuite": "1.4.1", "mujoco": "3.10.0", "numpy": "2.4.6"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    check = check_robosuite()
    assert check.verdict is Verdict.FAIL and "make setup EXTRAS=sim" in check.detail
    assert "mujoco 3.10.0 does not work with it" in check.detail and "numpy 2.4.6 does not work" in check.detail


def test_rounds_are_those_of_the_recipe_whatever_else_is_set(pipeline, tmp_path):
    result = wmpo("run", "smoke", "--out", tmp_path, "--rounds", 3, "--set", "recipe.rounds=2", "--set", "seed=4")
    assert result.exit_code == 0
    ((config, _, _),) = pipeline.calls
    assert (config.recipe.rounds, config.seed) == (3, 4)
    assert wmpo("run", "smoke", "--out", tmp_path, "--rounds", 0).exit_code == 2
    refused = wmpo("run", "smoke", "--out", tmp_path, "--rounds", 2000)
    assert refused.exit_code == 2 and "recipe.rounds" in refused.stderr and len(pipeline.calls) == 1


def test_the_table_has_every_round(capsys):
    rate = {"value": 0.5, "low": 0.45, "high": 0.55, "num": 512}
    stages = {f"evaluate{suffix}": {"seconds": 1.0, "metrics": {"success": rate}} for suffix in ("", "-2", "-3")}
    print_summary(make_console(), {**SUMMARY, "stages": stages})
    printed = capsys.readouterr().out
    assert "round 1" in printed and "round 2" in printed and "round 3" not in printed and "58.0%" in printed
