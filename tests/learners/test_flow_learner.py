"""Flow-GRPO: a learner of denoising paths, with nothing of its own but the ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners.policy_learner import PolicyLearner
from tests.support.implementations import make_flow, make_tiny
from tests.support.learner_groups import FACTS, groups, sample
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms.grpo import Grpo
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import Observation

NETWORK = {"width": 16, "num_layers": 1, "num_heads": 2}


def flow_config(ratio: str = "step") -> Config:
    policy = {"kind": "flow", "network": NETWORK, "flow": {"sde_steps": 3}}
    return Config.model_validate({**SETTINGS, "policy": policy, "grpo": SETTINGS["grpo"] | {"ratio": ratio}})


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("flow") / "policy"
    make_flow().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def learner(policy_dir, tmp_path) -> PolicyLearner:
    return PolicyLearner(flow_config(), policy_dir, str(tmp_path / "checkpoints"))


def test_it_judges_the_paths_as_they_were_sampled_and_raises_what_succeeded(learner):
    data = sample(learner)
    assert data.record["path"].shape == (8, 2, 4, 4, 3) and data.behavior_logprobs.shape == (8, 2, 3 * 12)
    rows = [0, 3, 4, 7]
    seen = Observation.of(data.frames[rows, 0], [data.instructions[i] for i in rows])

    def success_logprob() -> float:
        with torch.no_grad():
            return float(
                learner.policy.log_prob(seen, {"path": torch.from_numpy(data.record["path"][rows, 0])}, 1.0).sum()
            )

    before = success_logprob()
    first = learner.update(groups(), FACTS, data)[0].metrics
    assert first["policy/logprob_distance"] < 1e-4, "rounding alone, before the first step"
    learner.update(groups(), FACTS, data)
    assert success_logprob() > before


def test_each_step_has_its_own_ratio(learner):
    """Three steps of the same chunk weigh as three ratios, and a chunk that was cut short has as many."""
    algorithm = Grpo(flow_config())
    batch = algorithm.prepare(learner.policy, groups(finish=6), [sample(learner)])
    (part,) = algorithm.losses(learner.policy, batch, slice(0, 8), learner.ranks)
    assert batch.num_steps == 3 and part.weight == 8 * 2 * 3
    short = algorithm.prepare(learner.policy, groups(finish=3), [sample(learner)])
    (part,) = algorithm.losses(learner.policy, short, slice(0, 8), learner.ranks)
    assert part.weight == 8 * 3


def test_an_update_is_the_same_in_any_number_of_passes(policy_dir, tmp_path):
    grads = []
    for size in (0, 3):
        learner = PolicyLearner(flow_config(), policy_dir, str(tmp_path / str(size)))
        learner.algorithm.settings = learner.algorithm.settings.model_copy(update={"chunks_per_pass": size})
        batch = learner.algorithm.prepare(learner.policy, groups(), [sample(learner)])
        for part in learner.algorithm.losses(learner.policy, batch, slice(0, 8), learner.ranks):
            part.loss.backward()
        grads.append(
            np.concatenate([p.grad.flatten().numpy() for p in learner.policy.parameters() if p.grad is not None])
        )
    np.testing.assert_allclose(grads[0], grads[1], atol=1e-5)


def test_for_a_policy_of_tokens_the_ratio_of_a_step_is_that_of_the_chunk(tmp_path):
    make_tiny().save_pretrained(tmp_path / "policy")
    digests = []
    for ratio in ("step", "chunk"):
        config = Config.model_validate(
            {**SETTINGS, "policy": {"network": NETWORK}, "grpo": SETTINGS["grpo"] | {"ratio": ratio}}
        )
        learner = PolicyLearner(config, str(tmp_path / "policy"), str(tmp_path / ratio))
        digests.append(learner.update(groups(finish=6), FACTS, sample(learner))[0].version.digest)
    assert digests[0] == digests[1]
