"""Every kind that can be chosen is under contract, and offers what its table asks for."""

from __future__ import annotations

import pytest

from tests.support import implementations
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.without_simulator import RecordedKind
from wmpo_ray.kinds import ENVIRONMENTS, POLICIES, REWARD_MODELS, WORLD_MODELS

# robosuite's kind with tasks that the user brings: tests/environments/test_mimicgen.py
BROUGHT = {"mimicgen"}


@pytest.mark.parametrize(
    ("table", "instances"),
    [
        (ENVIRONMENTS, implementations.ENVIRONMENTS),
        (POLICIES, implementations.POLICIES),
        (WORLD_MODELS, implementations.WORLDS),
        (REWARD_MODELS, implementations.REWARD_MODELS),
    ],
)
def test_everything_registered_is_under_contract(table, instances):
    able = {kind for kind in table if not isinstance(table.find(kind), RecordedKind)}
    assert able - BROUGHT == set(instances)
    for kind in table:
        assert not [member for member in table.members if not hasattr(table.find(kind), member)]


def test_an_unknown_name_lists_the_known_ones():
    known = r"\['flow', 'openvla_oft', 'pi0', 'smolvla', 'tiny'\]"
    with pytest.raises(ConfigError, match=f"policy.kind='huge' is unknown; known are {known}"):
        POLICIES.find("huge")
