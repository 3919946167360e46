"""Facts of environments are those of the environments, as far as one can be made, and are there without it."""

from __future__ import annotations

import pytest

from wmpo_ray.config.loading import list_presets, load_config, validate
from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.registry import check_kinds, make_environment


def test_facts_of_the_embedded_task_are_those_of_its_environment():
    config = EnvironmentConfig()
    facts, environment = environment_facts(config), make_environment(config)
    environment.reset(range(32))
    assert (facts.frame_shape, facts.action_dim) == (environment.frame_shape, environment.action_dim)
    assert set(environment.instruction) == set(facts.instructions)


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_has_facts(preset):
    facts = environment_facts(load_config(preset).environment)
    height, width, channels = facts.frame_shape
    assert height == width and channels == 3 and facts.action_dim >= 2 and all(facts.instructions)


def test_without_its_simulator_a_task_is_known_and_cannot_be_run():
    config = load_config("coffee")
    assert environment_facts(config.environment)[:3] == ((256, 256, 3), 7, ("coffee",))
    for make in (make_environment(config.environment).check, lambda: check_kinds(config)):
        with pytest.raises(ConfigError, match=r'environment.kind="mimicgen" needs NVIDIA'):
            make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mimicgen", "task": "Tea_D0"}, r'environment.task="Tea_D0": known tasks of mimicgen are Coffee_D0, '),
        ({"task": "Tea_D0"}, r'environment.task = "Tea_D0": the tasks of pocket are "" '),
        (
            {"kind": "kitchen"},
            (
                r"environment.kind='kitchen' is unknown; known are "
                r"\['aloha', 'gymnasium', 'lift', 'metaworld', 'mimicgen', 'pocket', 'pusht', 'remote', 'robosuite', 'stack'\]"
            ),
        ),
    ],
)
def test_an_unknown_kind_or_task_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate({"environment": settings})
