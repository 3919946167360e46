"""robosuite where it is not installed: settings, facts, and one line for whatever is missing or does not fit."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from tests.support.config_errors import error_of
from tests.support.implementations import environment_section
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.robosuite import installed
from wmpo_ray.registry import make_environment

ROBOSUITE = "environment.kind=robosuite"
FITTING = {"robosuite": "1.4.1", "mujoco": "2.3.2", "numpy": "1.26.4"}


def with_versions(monkeypatch, **versions: str) -> None:
    """Let these packages be installed and no other."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


def test_a_horizon_that_is_not_set_is_that_of_the_task():
    for task, horizon in (("Lift", 64), ("Stack", 128), ("NutAssemblySquare", 184), ("PickPlaceCan", 400)):
        assert environment_section("robosuite", task=task).horizon == horizon
    assert environment_section("robosuite", task="Stack", horizon=12).horizon == 12
    assert load_config("demo", [ROBOSUITE, "environment.task=Stack"]).environment.horizon == 128


def test_facts_need_no_simulator():
    assert environment_facts(environment_section("robosuite", image_size=48))[:3] == (
        (48, 48, 3),
        7,
        ("lift the cube",),
    )
    assert environment_facts(environment_section("robosuite", task="ToolHang")).instructions == ("tool hang",)
    named = environment_section("robosuite", instruction="pick it up")
    assert environment_facts(named).instructions == ("pick it up",)


def test_plans_read_settings_without_simulator_and_torch():
    code = (
        "import sys\nfrom wmpo_ray.config.loading import load_config\nfrom wmpo_ray.environments.facts import "
        "environment_facts\nprint(environment_facts(load_config('robosuite-lift').environment))\n"
        "assert not {'robosuite', 'mujoco', 'OpenGL', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.task='Li ft'", 'environment.task = "Li ft": it must be the name of a task of robosuite'),
        ("environment.camera=''", 'environment.camera = "": it must be the name of a camera of robosuite'),
        ("environment.multisampling=3", "environment.multisampling"),
        ("environment.image_size=2", "environment.image_size"),
        ("environment.disruption=noise", "environment.disruption"),
    ],
)
def test_wrong_settings_are_named(override, message):
    assert message in error_of("demo", ROBOSUITE, override)


def test_without_the_package_it_is_one_line_that_says_what_to_install(monkeypatch):
    with_versions(monkeypatch, numpy="2.4.6")
    environment = make_environment(environment_section("robosuite"))
    for make in (environment.check, lambda: environment.restore(seeded_starts([0]))):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == (
            'environment.kind="robosuite" needs the package robosuite, which is not installed; pip install '
            "'wmpo-ray[sim]' or change environment.kind"
        )


@pytest.mark.parametrize(
    ("package", "version", "phrase"),
    [
        ("numpy", "2.4.6", "numpy 2.4.6 does not work with it, at least 1.26 and below 2.0 does"),
        ("mujoco", "3.10.0", "mujoco 3.10.0 does not work with it, at least 2.3.2 and below 3.0 does"),
        ("robosuite", "1.5.2", "robosuite 1.5.2 does not work with it, at least 1.4.1 and below 1.4.2 does"),
        ("mujoco", None, "mujoco is missing"),
    ],
)
def test_versions_that_do_not_fit_are_named(monkeypatch, package, version, phrase):
    with_versions(monkeypatch, **FITTING)
    assert installed.conflicts() == []
    versions = {name: found for name, found in {**FITTING, package: version}.items() if found}
    with_versions(monkeypatch, **versions)
    assert installed.conflicts() == [phrase]
    with pytest.raises(ConfigError, match=f"{phrase}; install the versions that fit with: pip install"):
        installed.load_robosuite()
