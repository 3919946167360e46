"""MimicGen without MimicGen: settings, facts, and one line for whatever is missing or is something else."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from tests.support.config_errors import error_of
from wmpo_ray.config.loading import load_config, validate
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.mimicgen.mimicgen_settings import HORIZONS, INSTRUCTIONS
from wmpo_ray.environments.mimicgen.mimicgen_source import find_mimicgen, load_mimicgen
from wmpo_ray.environments.robosuite.experts import has_expert
from wmpo_ray.registry import check_kinds, make_environment
from wmpo_ray.rollout.origins import recorded
from wmpo_ray.runs.outcomes import environment_hash


def section(**settings):
    return validate({"environment": {"kind": "mimicgen", **settings}}).environment


@pytest.fixture
def absent(monkeypatch):
    """No MimicGen, whatever is installed."""
    monkeypatch.delitem(sys.modules, "mimicgen", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_each_task_has_facts_a_horizon_and_an_expert(task):
    config = section(task=task)
    assert environment_facts(config)[:3] == ((256, 256, 3), 7, (INSTRUCTIONS[task],))
    assert config.horizon == HORIZONS[task] and has_expert(task)


def test_what_is_set_wins_over_what_the_task_brings():
    config = section(task="Square_D0", horizon=64, instruction="put it on", image_size=64)
    assert config.horizon == 64 and environment_facts(config)[:3] == ((64, 64, 3), 7, ("put it on",))


def test_where_it_is_missing_one_line_says_what_and_under_which_licence(absent):
    config = load_config("coffee")
    for make in (make_environment(config.environment).check, lambda: check_kinds(config)):
        with pytest.raises(ConfigError) as caught:
            make()
        message = str(caught.value)
        assert message.startswith('environment.kind="mimicgen" needs NVIDIA\'s MimicGen, which was not found')
        assert "research use only" in message and "PyPI is another thing" in message and "\n" not in message


def test_a_folder_without_it_is_named(absent, tmp_path):
    with pytest.raises(ConfigError, match=r"environment.checkout=.*: there is no folder .*mimicgen; check out"):
        find_mimicgen(str(tmp_path))


def test_another_package_of_that_name_is_not_imported(absent, tmp_path):
    (tmp_path / "mimicgen").mkdir()
    (tmp_path / "mimicgen" / "__init__.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ConfigError, match=r"mimicgen is not NVIDIA's MimicGen, it has no folder envs/robosuite"):
        load_mimicgen(str(tmp_path))


def test_one_that_registers_nothing_is_named_with_its_reason(monkeypatch, tmp_path, capsys):
    pytest.importorskip("robosuite", exc_type=ImportError)
    monkeypatch.delitem(sys.modules, "mimicgen", raising=False)
    (tmp_path / "mimicgen" / "envs" / "robosuite").mkdir(parents=True)
    (tmp_path / "mimicgen" / "__init__.py").write_text("print('Got error: No module named six')")
    try:
        with pytest.raises(ConfigError, match=r"has no task Coffee_D0, .* \(No module named six\)$"):
            load_mimicgen(str(tmp_path))
        with pytest.raises(ConfigError, match=r"this process has MimicGen from .* already"):
            find_mimicgen(str(tmp_path / "other"))
    finally:
        sys.modules.pop("mimicgen", None)
    assert not capsys.readouterr().out and str(tmp_path) not in sys.path


def test_wrong_settings_are_named():
    assert 'environment.task="Tea_D0": known tasks of mimicgen are Coffee_D0, ' in error_of(
        "coffee", "environment.task=Tea_D0"
    )
    assert "environment.checkout" in error_of("coffee", "environment.checkout=s3://bucket/mimicgen")


def test_where_the_checkout_lies_is_no_part_of_what_was_recorded():
    one, other = (load_config("coffee", overrides=[f"environment.checkout={place}"]) for place in ("/a", "/b"))
    assert recorded(one.environment, "expert") == recorded(other.environment, "expert")
    assert "checkout" not in recorded(one.environment, "expert").environment
    assert environment_hash(one) == environment_hash(other)


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_a_real_scene_goes_on_as_it_was_saved(task):
    """Where the variable MIMICGEN names a checkout."""
    if not os.environ.get("MIMICGEN"):
        pytest.skip("set MIMICGEN to the folder of a checkout of MimicGen")
    pytest.importorskip("robosuite", exc_type=ImportError)
    environment = make_environment(section(task=task, image_size=64, checkout=os.environ["MIMICGEN"]))
    environment.restore(seeded_starts([3]))
    for _ in range(5):
        environment.advance(environment.expert_action(np.random.default_rng(0)))
    (saved,) = environment.save()
    frames = []
    for _ in range(2):
        environment.restore([StartState(np.zeros((0, 0, 0, 3), np.uint8), "", None, saved_state=saved)])
        environment.advance(environment.expert_action(np.random.default_rng(0)))
        frames.append(environment.render())
    assert np.array_equal(*frames) and frames[0].shape == (1, 64, 64, 3) and frames[0].std() > 5
