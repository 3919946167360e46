"""Everything that is registered has an instance that the other tests of this folder hold to its contract."""

from __future__ import annotations

import pytest

from tests.support import implementations
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.registry import ENVIRONMENTS, POLICIES, REWARD_MODELS, WORLD_MODELS, resolve


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
    assert set(table) == set(instances)
    for kind, make in instances.items():
        assert isinstance(make(), resolve(table, kind, "kind"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"policy.kind='huge' is unknown; known are \['openvla_oft', 'tiny'\]"):
        resolve(POLICIES, "huge", "policy.kind")
