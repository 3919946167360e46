"""Sweeps: what a space may say, what its trials share, and a small one from beginning to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest

from cluster.sweeps.space import Range, SearchSection, Space, last_shared, read_space, setting
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.loading import load_config, overridden
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.watch.sweep_page import render_sweep

SPACE = """
[space.grpo]
learning_rate = { loguniform = [2e-5, 4e-4] }
clip_high = { choice = [0.2, 0.28] }
[space.rollout]
group_size = { integers = [4, 8] }
[search]
trials = 3
"""


def space_of(tmp_path, text: str):
    (tmp_path / "space.toml").write_text(text)
    return read_space(tmp_path / "space.toml")


def test_a_space_is_read_and_written(tmp_path):
    space = space_of(tmp_path, SPACE)
    assert list(space.ranges) == ["grpo.learning_rate", "grpo.clip_high", "rollout.group_size"]
    assert space.ranges["rollout.group_size"].examples == (4, 8) and space.search.trials == 3
    assert json.loads(space.as_json())["space"]["grpo.clip_high"] == {"choice": [0.2, 0.28]}
    quoted = space_of(tmp_path, '[space]\n"grpo.clip_low" = { uniform = [0.1, 0.2] }\n')
    assert list(quoted.ranges) == ["grpo.clip_low"] and setting("a.b", "x") == 'a.b="x"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[space", "Expected"),
        ("[spaces]\n", "expected the tables"),
        ("[space]\n", "no setting is searched"),
        ("[space]\ngrpo.clip_low = 0.1\n", "grpo.clip_low = 0.1: expected a range"),
        (
            "[space]\ngrpo.clip_low = { uniform = [0.2, 0.1] }\n",
            "grpo.clip_low: uniform = .*: the first number must be",
        ),
        (
            '[space]\ngrpo.clip_low = { uniform = ["a", 1] }\n',
            'grpo.clip_low.uniform.0 = "a": it must be a valid number',
        ),
        ("[space]\ngrpo.clip_low = { loguniform = [0.0, 0.1] }\n", "both ends must be above 0"),
        ("[space]\ngrpo.clip_low = { uniform = [0.1, 0.2], choice = [1] }\n", "a range is one of"),
        (
            "[space]\ngrpo.clip_low = { uniform = [0.1, 0.2] }\n[search]\ntrials = 0\n",
            "search.trials = 0: it must be greater",
        ),
        (
            "[space]\nseed = { choice = [1] }\n[search]\ntrial = 2\n",
            "unknown key search.trial; known are scheduler, trials",
        ),
        ("[space]\nseed = { choice = [1] }\n[search]\ninterval = 2\n", "space.toml: search.interval = 2 has no effect"),
        ("[space]\ngrpo.clip_low = { choice = [] }\n", "grpo.clip_low: choice = .*: there is nothing to choose from"),
        (
            '[space]\ngrpo.clip_low = { uniform = ["0.1", 1] }\n',
            'grpo.clip_low.uniform.0 = "0.1": it must be a valid number',
        ),
        (
            "[space]\nrollout.group_size = { integers = [false, true] }\n",
            "integers.0 = false: it must be a valid integer",
        ),
        ('[space]\n"seed" = { choice = [1] }\n" seed" = { choice = [2] }\n', '" seed": each setting is named once'),
        ('[space]\n"a.b" = { choice = [1] }\na.b = { choice = [2] }\n', '"a.b": each setting is named once'),
        (f"[space]\nseed = {{ choice = [{'[' * 900}1{']' * 900}] }}\n", "is nested too deeply"),
    ],
)
def test_a_mistake_in_a_space_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        space_of(tmp_path, text)
    assert "space.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_drawn_numbers_are_short_and_within_their_range_and_given_ones_stay_as_they_are():
    assert Range(choice=(0.000123456, "word")).rounded(0.000123456) == 0.000123456
    assert Range(loguniform=(1e-5, 1e-3)).rounded(0.000123456) == 0.0001235
    assert Range(uniform=(0.99991, 0.99999)).rounded(0.999954321) == 0.99995432
    assert Range(uniform=(0.12344, 0.9)).rounded(0.12344) == 0.12344, "not below its end"
    narrow = Range(uniform=(1.00001e-4, 1.00004e-4))
    assert narrow.rounded(1.0000234e-4) == 1.0000234e-4


@pytest.mark.parametrize(
    ("key", "values", "until"),
    [
        ("grpo.learning_rate", [1e-5, 1e-4], "gate"),
        ("grpo.overlong_steps", [0, 8], "gate"),  # the default is no part of what a result is made from
        ("reward.learning_rate", [1e-4, 1e-3], "world-model"),
        ("world_model.alignment.steps", [4, 8], "collect"),
        ("evaluation.num_starts", [16, 32], "optimize"),
        ("demos.num_trajectories", [60, 80], None),
    ],
)
def test_trials_share_the_stages_that_no_setting_changes(key, values, until):
    config = load_config("smoke")
    ranges = {key: Range.model_validate({"choice": values})}
    assert last_shared(config, _space(ranges)) == until


def _space(ranges):
    return Space(ranges, SearchSection())


def test_settings_that_change_nothing_or_are_refused_are_named():
    config = load_config("smoke")
    with pytest.raises(ConfigError, match="rollout.max_attempts: no stage's result depends on it"):
        last_shared(config, _space({"rollout.max_attempts": Range.model_validate({"integers": [100, 200]})}))
    with pytest.raises(ConfigError, match="grpo.clip_low = 2"):
        last_shared(config, _space({"grpo.clip_low": Range.model_validate({"uniform": [0.1, 2.0]})}))
    with pytest.raises(ConfigError, match="grpo.clip_lo"):
        last_shared(config, _space({"grpo.clip_lo": Range.model_validate({"uniform": [0.1, 0.2]})}))


def test_a_least_length_beyond_the_run_is_refused_only_where_it_was_asked_for():
    from cluster.sweeps.search_checks import check_search, longest

    config, ranges = load_config("smoke"), {"grpo.learning_rate": Range(uniform=(1e-5, 1e-4))}
    check_search(config, Space(ranges, SearchSection()))
    with pytest.raises(ConfigError, match=r"search.min_updates = 9: with grpo.num_updates = \d no trial"):
        check_search(config, Space(ranges, SearchSection(min_updates=9)))
    longer = {"grpo.num_updates": Range(choice=(12, 9))}
    assert longest(config, Space(longer, SearchSection())) == 12
    check_search(config, Space(longer, SearchSection(min_updates=9)))


def test_the_page_shows_every_trial_and_the_best_in_colour():
    rate = {"value": 0.6, "low": 0.5, "high": 0.7, "num": 64}
    trials = [
        {"name": "b", "settings": {"x.rate": 1e-3, "x.kind": "<b>"}, "updates": 4, "success": 0.5, "final": rate},
        {"name": "a", "settings": {"x.rate": 1e-5, "x.kind": "two"}, "updates": 2, "success": 0.3, "final": None},
        {"name": "c", "settings": {}, "updates": 0, "success": None, "final": None, "state": "failed"},
    ]
    page = render_sweep({"name": "demo", "metric": "m", "ranges": {"x.rate": {}, "x.kind": {}}, "trials": trials})
    assert page.count("<polyline") == 2 and page.count('class="tone-final"') == 1
    assert "50.0 – 70.0%" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "No trial has reported" in render_sweep({"name": "demo", "ranges": {"x.rate": {}}, "trials": []})


def test_a_sweep_is_gone_on_with_by_a_version_that_has_more_settings(tmp_path):
    from cluster.sweeps.search_checks import check_folder

    config, space = load_config("smoke"), space_of(tmp_path, SPACE)
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "space.json").write_text(space.as_json())
    text = config_to_toml(config)
    fewer = "\n".join(line for line in text.splitlines() if not line.startswith("earlier = "))
    assert fewer.strip() != text.strip()
    (out / "settings.toml").write_text(fewer)
    check_folder(out, config, space, resume=True)
    with pytest.raises(UserError, match="other settings or another space"):
        check_folder(out, overridden(config, ["grpo.num_updates=3"]), space, resume=True)


def test_a_sweep_that_another_process_runs_is_left_alone(tmp_path):
    from cluster.sweeps.search_checks import check_folder
    from cluster.sweeps.sweep import locked, sweep

    config, space, out = load_config("smoke"), space_of(tmp_path, SPACE), tmp_path / "sweep"
    with locked(out):
        before = sorted(out.iterdir())
        with pytest.raises(UserError, match=rf"--out {out} is in use by .*choose another folder"):
            sweep(config, space, out, resume=True)
        assert sorted(out.iterdir()) == before
    with locked(out):
        check_folder(out, config, space, resume=False)  # what was begun and ended at once is no sweep yet
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        sweep(config, space, tmp_path / "file")


def test_a_trial_that_shares_nothing_begins_in_a_folder_with_its_settings(tmp_path):
    from cluster.sweeps.trial import make_folder

    (tmp_path / "settings.toml").write_text(config_to_toml(load_config("smoke")))
    folder = tmp_path / "trials" / "one"
    make_folder(tmp_path, folder, ["seed=3"])
    run = RunFolder.open(folder, load_config(str(folder / "settings.toml")))
    run.close()
    assert run.config.seed == 3


@pytest.mark.parametrize(("states", "code"), [(("failed", "failed"), 2), (("failed", "done"), 0)])
def test_a_sweep_of_which_every_trial_failed_has_failed(tmp_path, monkeypatch, states, code):
    from typer.testing import CliRunner

    from cluster.cli.app import app
    from cluster.sweeps import sweep

    (tmp_path / "space.toml").write_text(SPACE)
    trial = {"name": "one", "settings": {}, "updates": 0, "success": None, "final": None}
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: {"trials": [{**trial, "state": state} for state in states]})
    out = tmp_path / "sweep"
    done = CliRunner().invoke(app, ["tune", "smoke", "--space", str(tmp_path / "space.toml"), "--out", str(out)])
    assert done.exit_code == code and ("every trial failed" in done.output) == (code == 2), done.output


def shared_sweep(gated_run, tmp_path):
    """A sweep of which the shared stages are done."""
    out, config = tmp_path / "sweep", load_config("smoke")
    space = space_of(tmp_path, "[space]\ngrpo.learning_rate = { choice = [1e-4, 1e-3] }\n[search]\ntrials = 2\n")
    out.mkdir()
    shutil.copytree(gated_run.folder, out / "shared")
    (out / "space.json").write_text(space.as_json())
    (out / "settings.toml").write_text(config_to_toml(config))
    return config, space, out


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_with_the_same_trials(gated_run, tmp_path):
    from cluster.sweeps.sweep import sweep

    config, space, out = shared_sweep(gated_run, tmp_path)
    command = [sys.executable, "-m", "wmpo_ray", "tune", "smoke", "--force", "--space", str(tmp_path / "space.toml")]
    driver = subprocess.Popen([*command, "--out", str(out), "--resume"])
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob("trials/*/metrics.jsonl")) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        begun = {path.name for path in out.glob("trials/*") if path.is_dir()}
        assert begun and driver.poll() is None and not (out / "sweep.json").exists(), "it is in the middle"
    finally:
        driver.kill()
        driver.wait()
    found = sweep(config, space, out, resume=True, force=True)
    assert [one["state"] for one in found["trials"]] == ["done", "done"]
    assert (
        begun
        <= {one["name"] for one in found["trials"]}
        == {path.name for path in out.glob("trials/*") if path.is_dir()}
    )


@pytest.mark.slow
def test_a_sweep_runs_shares_and_goes_on(gated_run, tmp_path):
    """Two trials on real Ray, forked from one base; a second call finds nothing to do, another space is refused."""
    from cluster.sweeps.sweep import sweep

    config, space, out = shared_sweep(gated_run, tmp_path)
    found = sweep(config, space, out, resume=True, force=True)
    assert found["shared_until"] == "gate" and [one["state"] for one in found["trials"]] == ["done", "done"]
    assert all(one["updates"] == 2 and one["final"]["num"] == 16 for one in found["trials"])
    assert (out / "report" / "index.html").is_file()
    times = {path: path.stat().st_mtime for path in out.glob("trials/*/models/policy/*")}
    again = sweep(config, space, out, resume=True, force=True)
    assert again == found and times == {path: path.stat().st_mtime for path in out.glob("trials/*/models/policy/*")}
    with pytest.raises(UserError, match="add --resume"):
        sweep(config, space, out)
    with pytest.raises(UserError, match="other settings or another space"):
        sweep(overridden(config, ["grpo.num_updates=3"]), space, out, resume=True)
