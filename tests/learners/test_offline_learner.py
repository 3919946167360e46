"""The learner on recorded episodes: it improves the objective of its algorithm, and can be interrupted anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learners.policy_learner import PolicyLearner
from tests.support.learner_groups import Killed, interrupt
from tests.support.recorded import offline_config, recorded, save_tiny_policy
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.data.store import save_episodes

KINDS = ["dpo", "filtered_bc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a policy and recorded episodes."""
    folder = tmp_path_factory.mktemp("recorded")
    save_tiny_policy(offline_config("dpo"), folder / "policy")
    save_episodes(folder / "episodes.parquet", recorded())
    return folder


def started(kind: str, folder: Path, checkpoints: Path, **settings) -> PolicyLearner:
    learner = PolicyLearner(offline_config(kind, **settings), str(folder / "policy"), str(checkpoints))
    learner.resume(str(folder / "episodes.parquet"))
    return learner


@pytest.mark.parametrize("kind", KINDS)
def test_training_improves_the_objective(folder, tmp_path, kind):
    learner = started(kind, folder, tmp_path, num_updates=8)
    metrics = [learner.update_recorded().metrics for _ in range(8)]
    assert metrics[-1]["policy/loss"] < 0.8 * metrics[0]["policy/loss"]
    if kind == "dpo":
        assert metrics[-1]["preference/accuracy"] == 1 and metrics[-1]["preference/pairs"] == 4
        assert metrics[-1]["preference/margin"] > metrics[0]["preference/margin"]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_goes_on_bit_for_bit(folder, tmp_path, kind):
    """The reference is that of the base policy, not of the checkpoint."""
    straight = started(kind, folder, tmp_path / "straight")
    expected = [straight.update_recorded() for _ in range(3)]
    started(kind, folder, tmp_path / "cut").update_recorded()
    second = started(kind, folder, tmp_path / "cut")
    assert second.num_updates == 1
    found = [second.update_recorded() for _ in range(2)]
    assert [result.version for result in found] == [result.version for result in expected[1:]]
    assert [r.metrics["policy/loss"] for r in found] == [r.metrics["policy/loss"] for r in expected[1:]]


def test_an_update_that_was_cut_short_goes_on_behind_its_last_step(folder, tmp_path):
    expected = started("dpo", folder, tmp_path / "straight").update_recorded()
    first = started("dpo", folder, tmp_path / "cut")
    made = interrupt(first, 1)
    with pytest.raises(Killed):
        first.update_recorded()
    second = started("dpo", folder, tmp_path / "cut")
    rest = interrupt(second, 4)
    assert second.update_recorded().version == expected.version
    assert made + rest == [0, 4]


def test_a_loss_that_is_not_finite_names_the_settings_of_the_algorithm(folder, tmp_path):
    learner = started("dpo", folder, tmp_path, max_skipped_steps=1)
    learner._recorded.reference[:] = np.nan
    with pytest.raises(UserError, match=r"lower dpo.learning_rate=0.001, .* a higher dpo.max_skipped_steps=1"):
        learner.update_recorded()


def test_nothing_to_learn_from_is_said_before_the_first_update(folder, tmp_path):
    save_episodes(tmp_path / "failed.parquet", recorded().rows(slice(6, None)))
    for kind, part in (("dpo", "no pairs"), ("filtered_bc", "nothing to clone")):
        learner = PolicyLearner(offline_config(kind), str(folder / "policy"), str(tmp_path / kind))
        with pytest.raises(UserError, match=part):
            learner.resume(str(tmp_path / "failed.parquet"))


def test_parameters_that_match_nothing_are_named_with_their_section(folder, tmp_path):
    with pytest.raises(ConfigError, match="dpo.trained_parameters='none' matches no parameter"):
        started("dpo", folder, tmp_path, trained_parameters="none")
