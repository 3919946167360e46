"""What every algorithm must hold. A new one adds an entry here and passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from learners.sharding import ALONE
from tests.support.learner_groups import groups, sample
from tests.support.recorded import offline_config, recorded, tiny_policy
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms import base
from wmpo_ray.algorithms.base import (
    Algorithm,
    OfflineAlgorithm,
    OnlineAlgorithm,
    algorithm_class,
    make_algorithm,
    offline_algorithm,
    online_algorithm,
)
from wmpo_ray.algorithms.batching import Batch
from wmpo_ray.algorithms.grpo import Grpo
from wmpo_ray.config.algorithms import SECTIONS
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import MAIN_CAMERA, StartState
from wmpo_ray.core.types import Group, GroupRequest, Stored, Verdict


def grpo_config(**settings: Any) -> Config:
    return Config.model_validate({**SETTINGS, "grpo": {**SETTINGS["grpo"], **settings}})


def online_config(kind: str, **settings: Any) -> Config:
    own = {key: value for key, value in SETTINGS.items() if key != "grpo"}
    return Config.model_validate({**own, "algorithm": {"kind": kind}, kind: {**SETTINGS["grpo"], **settings}})


CONFIGS: dict[str, Callable[..., Config]] = {
    "grpo": grpo_config,
    **{kind: functools.partial(online_config, kind) for kind in ("rollout_bc", "rloo", "reinforce_pp", "gspo")},
    "filtered_bc": lambda **settings: offline_config("filtered_bc", **settings),
    "dpo": lambda **settings: offline_config("dpo", **settings),
}

MEANS = ("ratio", "horizon")


def batch_of(algorithm: Algorithm, policy: Any) -> Batch:
    if isinstance(algorithm, OnlineAlgorithm):
        return algorithm.prepare(policy, groups(finish=6), [sample(SimpleNamespace(policy=policy))])  # type: ignore[arg-type]
    assert isinstance(algorithm, OfflineAlgorithm)
    return algorithm.prepare(policy, recorded(), ALONE, lambda: None).batch(0)


def test_everything_in_the_table_is_under_contract_and_has_a_section():
    assert set(CONFIGS) == set(SECTIONS)
    for kind, section in SECTIONS.items():
        algorithm = make_algorithm(CONFIGS[kind]())
        chosen, other = (online_algorithm, offline_algorithm)[:: 1 if section.source == "online" else -1]
        assert type(chosen(CONFIGS[kind]())) is type(algorithm) is algorithm_class(kind)
        with pytest.raises(ConfigError, match=f'algorithm.kind = "{kind}" learns from'):
            other(CONFIGS[kind]())


@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, {}) for kind in CONFIGS), *(("grpo", {"loss_mean": mean}) for mean in MEANS)]
)
def test_the_parts_of_a_mini_batch_add_up_to_it(kind, settings):
    """Loss, gradient and metrics are the same in one pass and in passes of two decisions."""
    found = []
    for chunks_per_pass in (0, 2):
        config = CONFIGS[kind](chunks_per_pass=chunks_per_pass, **settings)
        algorithm, policy = make_algorithm(config), tiny_policy(config)
        batch, value, num_parts = batch_of(algorithm, policy), 0.0, 0
        assert len(batch) == len(batch.instructions) and batch.metrics
        for part in algorithm.losses(policy, batch, slice(0, 4), ALONE):
            assert part.loss.device.type == "cpu" and all(np.isfinite(float(v)) for v in part.metrics.values())
            part.loss.backward()
            value, num_parts = value + float(part.loss.detach()), num_parts + 1
        assert num_parts == 1 if not chunks_per_pass else num_parts > 2
        found.append((value, [parameter.grad for parameter in policy.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-5)
    assert any(gradient.abs().sum() > 0 for gradient in found[0][1])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_batch_is_known_by_what_it_teaches(kind):
    config = CONFIGS[kind]()
    algorithm, policy = make_algorithm(config), tiny_policy(config)
    first, again = batch_of(algorithm, policy), batch_of(algorithm, policy)
    assert first.signature() == again.signature()
    again.images[MAIN_CAMERA][0, 0] = 255 - again.images[MAIN_CAMERA][0, 0]
    assert first.signature() != again.signature()


@pytest.mark.parametrize("kind", [kind for kind, section in SECTIONS.items() if section.source == "online"])
def test_a_group_teaches_by_its_successes_or_by_their_difference(kind):
    algorithm = online_algorithm(CONFIGS[kind]())
    request = GroupRequest(0, 0, 0, StartState(np.zeros((1, 2, 2, 3), np.uint8), "go"), 2, 0)

    def verdict(*success: bool) -> Verdict:
        return algorithm.admit(Group(request, 0, np.array(success), np.full(2, 8), 0, (Stored(None, (0, 2)),)))

    assert verdict(True, False) is Verdict.ADMIT
    assert verdict(False, False) is Verdict.UNIFORM
    assert verdict(True, True) is (Verdict.ADMIT if kind == "rollout_bc" else Verdict.UNIFORM)


# -- from a package ------------------------------------------------------------------------------------------------


class Eager(Grpo):
    """An algorithm that a package might bring."""


class Plain(Eager):
    """One that takes any settings."""

    def __init__(self, config: Config):
        self.config = config


NOTHING = 3


def bring(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    found = [EntryPoint(name, value, base.ENTRY_POINTS)]
    monkeypatch.setattr(base, "entry_points", lambda group: found if group == base.ENTRY_POINTS else [])


def brought(kind: str, settings: str = "grpo") -> Config:
    return Config.model_validate({**SETTINGS, "algorithm": {"kind": kind, "settings": settings}})


def test_an_algorithm_from_a_package_reads_the_section_that_it_names(monkeypatch):
    bring(monkeypatch, "eager", f"{__name__}:Eager")
    algorithm = make_algorithm(brought("eager"))
    assert algorithm.settings.num_updates == SETTINGS["grpo"]["num_updates"]
    assert type(algorithm).__name__ == "Eager" and isinstance(algorithm, Grpo)
    bring(monkeypatch, "plain", f"{__name__}:Plain")
    with pytest.raises(ConfigError, match='algorithm.settings = "dpo" is for offline algorithms, and .* is online'):
        make_algorithm(Config.model_validate({"algorithm": {"kind": "plain", "settings": "dpo"}}))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (f"{__name__}:Missing", "cannot be loaded: AttributeError"),
        ("no_such_package:Eager", "cannot be loaded: ModuleNotFoundError"),
        (f"{__name__}:NOTHING", "is no subclass of Algorithm"),
    ],
)
def test_a_package_that_is_broken_is_named(monkeypatch, value, part):
    bring(monkeypatch, "eager", value)
    with pytest.raises(ConfigError, match=rf'algorithm.kind = "eager".*{value.split(":")[1]}.*{part}'):
        make_algorithm(brought("eager"))
    with pytest.raises(ConfigError, match=r'algorithm.kind = "lazy": known are dpo, eager, filtered_bc, grpo'):
        make_algorithm(brought("lazy"))
