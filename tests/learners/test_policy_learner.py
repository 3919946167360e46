"""The learner: what one update does, what it survives, what it can be resumed from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.policy_learner import PolicyLearner, Spooled
from tests.support.learner_groups import FACTS, GROUP, NUM_CHUNKS, Killed, groups, interrupt, sample
from tests.support.small_run import SETTINGS, small_config
from wmpo_ray.algorithms.grpo import Grpo
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Trajectories
from wmpo_ray.data.spool import save_trajectories
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of


@pytest.fixture
def policy_dir(tmp_path) -> str:
    torch.manual_seed(0)
    settings = small_config().policy.network.model_dump()
    TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).save_pretrained(
        tmp_path / "policy"
    )
    return str(tmp_path / "policy")


@pytest.fixture
def learner(policy_dir, tmp_path) -> PolicyLearner:
    return PolicyLearner(small_config(), policy_dir, str(tmp_path / "checkpoints"))


def success_logprob(learner: PolicyLearner, data: Trajectories) -> float:
    rows = [0, 3, 4, 7]
    texts = [data.instructions[i] for i in rows]
    with torch.no_grad():
        seen, record = Observation.of(data.frames[rows, 0], texts), data.record["tokens"][rows, 0]
        return float(learner.policy.log_prob(seen, {"tokens": torch.from_numpy(record)}, 1.0).sum())


def test_an_update_raises_the_likelihood_of_what_succeeded(learner):
    data = sample(learner)
    before = success_logprob(learner, data)
    for _ in range(3):
        learner.update(groups(), FACTS, data)
    assert success_logprob(learner, data) > before


def test_log_probabilities_of_sampling_time_are_those_of_the_learner(learner):
    result, *_ = learner.update(groups(), FACTS, sample(learner))
    assert result.metrics["policy/logprob_distance"] < 1e-5


def test_the_distance_of_log_probabilities_sees_other_weights(learner):
    data = sample(learner)
    learner.update(groups(), FACTS, data)
    assert learner.update(groups(), FACTS, data)[0].metrics["policy/logprob_distance"] > 1e-3


def test_what_happens_after_the_finish_step_teaches_nothing(policy_dir, tmp_path):
    digests = []
    for seed in (0, 1):
        learner = PolicyLearner(small_config(), policy_dir, str(tmp_path / f"c{seed}"))
        data = sample(learner)
        data.frames[:, 1] = np.random.default_rng(seed).integers(0, 255, data.frames[:, 1].shape)
        digests.append(learner.update(groups(finish=4), FACTS, data)[0].version.digest)
    assert digests[0] == digests[1]


def test_equal_outcomes_leave_the_weights_alone(learner):
    version = learner.resume().version
    same = [group._replace(success=np.ones(GROUP, bool)) for group in groups()]
    assert learner.update(same, FACTS, sample(learner))[0].version.digest == version.digest


def test_a_loss_that_is_not_finite_is_skipped_counted_and_ends_the_run_at_the_limit(policy_dir, tmp_path):
    learner = PolicyLearner(with_grpo(num_updates=9), policy_dir, str(tmp_path / "checkpoints"))
    version = learner.resume().version
    data = sample(learner)
    broken = replace(data, behavior_logprobs=np.full_like(data.behavior_logprobs, np.nan))
    result, *_ = learner.update(groups(), FACTS, broken)
    assert result.metrics["policy/skipped_steps"] == 1 and result.version.digest == version.digest
    with pytest.raises(UserError, match=r"not finite.*grpo.learning_rate.*grpo.max_skipped_steps"):
        for _ in range(5):
            learner.update(groups(), FACTS, broken)


def with_grpo(**settings) -> Config:
    return Config.model_validate({**SETTINGS, "grpo": {**SETTINGS["grpo"], **settings}})


@pytest.mark.parametrize("minibatch", [4, 8])
def test_a_learning_rate_that_ruins_the_policy_ends_the_run_and_the_last_good_checkpoint_stays(
    policy_dir, tmp_path, minibatch
):
    learner = PolicyLearner(with_grpo(minibatch_trajectories=minibatch), policy_dir, str(tmp_path / "checkpoints"))
    data = sample(learner)
    good = learner.update(groups(), FACTS, data)[0].version
    for parameters in learner.optimizer.param_groups:
        parameters["lr"] = 1e30
    with pytest.raises(UserError, match="update 2 .*not finite; lower grpo.learning_rate"):
        learner.update(groups(), FACTS, data)
    assert (
        PolicyLearner(small_config(), policy_dir, str(tmp_path / "checkpoints")).resume().version.digest == good.digest
    )


def test_a_run_whose_last_update_changed_nothing_is_no_success(policy_dir, tmp_path):
    learner = PolicyLearner(with_grpo(num_updates=1), policy_dir, str(tmp_path / "checkpoints"))
    data = sample(learner)
    broken = replace(data, behavior_logprobs=np.full_like(data.behavior_logprobs, np.nan))
    with pytest.raises(UserError, match="the last update, 1, changed nothing: each of its 1 optimizer steps"):
        learner.update(groups(), FACTS, broken)


def test_resumed_it_goes_on_bit_for_bit(policy_dir, tmp_path):
    def play(folder: str, stop_after: int | None) -> str:
        learner = PolicyLearner(small_config(), policy_dir, str(tmp_path / folder))
        for update in range(3):
            if update == stop_after:
                learner = PolicyLearner(small_config(), policy_dir, str(tmp_path / folder))
                assert learner.resume().version.num_updates == update
            learner.update(groups(), FACTS, sample(learner, seed=update))
        return learner.published.publish(3)[0].digest

    assert play("straight", None) == play("resumed", 2)


def test_an_altered_checkpoint_is_named_and_the_one_before_is_used(learner, policy_dir, tmp_path):
    for update in range(2):
        learner.update(groups(), FACTS, sample(learner, seed=update))
    file = tmp_path / "checkpoints" / "step-000002" / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    fresh = PolicyLearner(small_config(), policy_dir, str(tmp_path / "checkpoints"))
    state = fresh.resume()
    assert state.version.num_updates == 1 and len(state.history) == 1 and state.trained == FACTS.keys
    assert len(state.problems) == 1 and "step-000002" in state.problems[0]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_an_update_that_was_cut_short_goes_on_behind_its_last_step(policy_dir, tmp_path, after):
    config = Config.model_validate({**SETTINGS, "grpo": {**SETTINGS["grpo"], "minibatch_trajectories": 2}})

    def make(folder: str) -> PolicyLearner:
        learner = PolicyLearner(config, policy_dir, str(tmp_path / folder))
        learner.resume()
        return learner

    data = sample(make("data"))
    expected = make("straight").update(groups(), FACTS, data)[0]
    first = make("cut")
    made = interrupt(first, after)
    with pytest.raises(Killed):
        first.update(groups(), FACTS, data)
    second = make("cut")
    assert second.resume().version.num_updates == 0, "the update is not done: replicas keep the weights before it"
    rest = interrupt(second, 4)
    result = second.update(groups(), FACTS, data)[0]
    assert made + rest == [0, 2, 4, 6], "no step is made twice"
    assert result.version == expected.version
    assert result.metrics["policy/loss"] == expected.metrics["policy/loss"]


def test_another_batch_starts_the_update_from_its_beginning(policy_dir, tmp_path):
    learner = PolicyLearner(small_config(), policy_dir, str(tmp_path / "c"))
    interrupt(learner, 0)
    with pytest.raises(Killed):
        learner.update(groups(), FACTS, sample(learner))
    fresh = PolicyLearner(small_config(), policy_dir, str(tmp_path / "c"))
    straight = PolicyLearner(small_config(), policy_dir, str(tmp_path / "d"))
    other = sample(fresh, seed=5)
    assert fresh.update(groups(), FACTS, other)[0].version == straight.update(groups(), FACTS, other)[0].version


def test_trajectories_from_the_disk_teach_the_same(learner, policy_dir, tmp_path):
    data = sample(learner)
    sha256 = save_trajectories(tmp_path / "spool" / "a.safetensors", data)
    other = PolicyLearner(small_config(), policy_dir, str(tmp_path / "other"))
    spooled = Spooled(str(tmp_path / "spool" / "a.safetensors"), sha256)
    assert other.update(groups(), FACTS, spooled)[0].version == learner.update(groups(), FACTS, data)[0].version


def test_weights_of_earlier_versions_outlive_the_process(policy_dir, tmp_path):
    config = Config.model_validate({**SETTINGS, "filter": {"max_staleness": 1}})
    learner = PolicyLearner(config, policy_dir, str(tmp_path / "c"))
    learner.resume()
    digests = [learner.update(groups(), FACTS, sample(learner, seed=i))[0].version.digest for i in range(2)]
    fresh = PolicyLearner(config, policy_dir, str(tmp_path / "c"))
    assert fresh.resume().digests[1] == digests[0]
    assert [fresh.weights(version)[0].digest for version in (1, 2)] == digests


def test_only_the_chosen_parameters_are_trained(policy_dir, tmp_path):
    config = Config.model_validate({**SETTINGS, "grpo": {**SETTINGS["grpo"], "trained_parameters": "head|bias"}})
    learner = PolicyLearner(config, policy_dir, str(tmp_path / "c"))
    before = {name: parameter.detach().clone() for name, parameter in learner.policy.named_parameters()}
    learner.update(groups(), FACTS, sample(learner))
    changed = {
        name for name, parameter in learner.policy.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed and all("head" in name or "bias" in name for name in changed)
    none = Config.model_validate({**SETTINGS, "grpo": {**SETTINGS["grpo"], "trained_parameters": "nothing_like_this"}})
    with pytest.raises(UserError, match="trained_parameters='nothing_like_this' matches no parameter"):
        PolicyLearner(none, policy_dir, str(tmp_path / "d"))


def test_groups_are_cut_from_the_object_they_stand_in(learner):
    first, second = sample(learner, seed=1), sample(learner, seed=2)
    slices = [groups()[1]._replace(pieces=((1, (4, 8)),)), groups()[0]]
    batch = Grpo(small_config()).prepare(learner.policy, slices, [first, second])
    (frames,) = batch.images.values()
    assert (frames[:4] == second.frames[4:8]).all() and (frames[4:] == first.frames[:4]).all()


def test_settings_of_the_small_run_are_a_valid_config():
    assert Config.model_validate(SETTINGS).num_chunks == NUM_CHUNKS
