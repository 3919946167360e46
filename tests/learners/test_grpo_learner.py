"""The learner: what one update does, what it survives, what it can be resumed from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners.grpo_learner import GrpoLearner, weights_digest
from tests.cluster.small_run import SETTINGS, small_config
from wmpo_ray.batching import GroupSlice, build_batch
from wmpo_ray.config import Config
from wmpo_ray.environments.pocket import INSTRUCTIONS
from wmpo_ray.errors import UserError
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.types import Trajectories

NUM_CHUNKS, GROUP = 2, 4


@pytest.fixture
def policy_dir(tmp_path) -> str:
    torch.manual_seed(0)
    settings = small_config().policy.network.model_dump()
    TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).save_pretrained(
        tmp_path / "policy"
    )
    return str(tmp_path / "policy")


@pytest.fixture
def learner(policy_dir, tmp_path) -> GrpoLearner:
    return GrpoLearner(small_config(), policy_dir, str(tmp_path / "checkpoints"))


def sample(learner: GrpoLearner, num: int = 8, seed: int = 0) -> Trajectories:
    """Trajectories as the learner's own policy would act, on random frames."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (num, NUM_CHUNKS, 16, 16, 3)).astype(np.uint8)
    texts = tuple(INSTRUCTIONS[i % 2] for i in range(num))
    chunks = [learner.policy.act(frames[:, n], texts, 1.0, [seed + 100 * n + i for i in range(num)]) for n in range(2)]
    stack = [np.stack([chunk[k].numpy() for chunk in chunks], 1) for k in range(3)]
    return Trajectories(frames, texts, stack[0], stack[1], stack[2], 0)


def groups(finish: int = 8) -> list[GroupSlice]:
    success = np.array([True, False, False, True])
    return [GroupSlice(0, (i * GROUP, (i + 1) * GROUP), success, np.full(GROUP, finish)) for i in range(2)]


def success_logprob(learner: GrpoLearner, data: Trajectories) -> float:
    rows = [0, 3, 4, 7]
    texts = [data.instructions[i] for i in rows]
    with torch.no_grad():
        return float(
            learner.policy.log_prob(
                data.frames[rows, 0], texts, torch.from_numpy(data.action_tokens[rows, 0]), 1.0
            ).sum()
        )


def test_an_update_raises_the_likelihood_of_what_succeeded(learner):
    data = sample(learner)
    before = success_logprob(learner, data)
    for _ in range(3):
        learner.update(groups(), {}, data)
    assert success_logprob(learner, data) > before


def test_log_probabilities_of_sampling_time_are_those_of_the_learner(learner):
    result, _ = learner.update(groups(), {}, sample(learner))
    assert result.metrics["policy/logprob_distance"] < 1e-5


def test_the_distance_of_log_probabilities_sees_other_weights(learner):
    data = sample(learner)
    learner.update(groups(), {}, data)
    assert learner.update(groups(), {}, data)[0].metrics["policy/logprob_distance"] > 1e-3


def test_what_happens_after_the_finish_step_teaches_nothing(policy_dir, tmp_path):
    digests = []
    for seed in (0, 1):
        learner = GrpoLearner(small_config(), policy_dir, str(tmp_path / f"c{seed}"))
        data = sample(learner)
        data.frames[:, 1] = np.random.default_rng(seed).integers(0, 255, data.frames[:, 1].shape)
        digests.append(learner.update(groups(finish=4), {}, data)[0].version.digest)
    assert digests[0] == digests[1]


def test_equal_outcomes_leave_the_weights_alone(learner):
    version, _ = learner.weights()
    same = [group._replace(success=np.ones(GROUP, bool)) for group in groups()]
    assert learner.update(same, {}, sample(learner))[0].version.digest == version.digest


def test_a_loss_that_is_not_finite_is_skipped_counted_and_ends_the_run_at_the_limit(learner):
    version, _ = learner.weights()
    data = sample(learner)
    broken = Trajectories(*[*data.__dict__.values()][:3], np.full_like(data.behavior_logprobs, np.nan), data.actions, 0)
    result, _ = learner.update(groups(), {}, broken)
    assert result.metrics["policy/skipped_steps"] == 1 and result.version.digest == version.digest
    with pytest.raises(UserError, match=r"not finite.*grpo.learning_rate.*grpo.max_skipped_steps"):
        for _ in range(5):
            learner.update(groups(), {}, broken)


def test_resumed_it_goes_on_bit_for_bit(policy_dir, tmp_path):
    def play(folder: str, stop_after: int | None) -> str:
        learner = GrpoLearner(small_config(), policy_dir, str(tmp_path / folder))
        for update in range(3):
            if update == stop_after:
                learner = GrpoLearner(small_config(), policy_dir, str(tmp_path / folder))
                assert learner.resume()[0] == update
            learner.update(groups(), {}, sample(learner, seed=update))
        return learner.weights()[0].digest

    assert play("straight", None) == play("resumed", 2)


def test_an_altered_checkpoint_is_named_and_the_one_before_is_used(learner, policy_dir, tmp_path):
    for update in range(2):
        learner.update(groups(), {}, sample(learner, seed=update))
    file = tmp_path / "checkpoints" / "step-000002" / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    fresh = GrpoLearner(small_config(), policy_dir, str(tmp_path / "checkpoints"))
    num_updates, history, problems = fresh.resume()
    assert num_updates == 1 and len(history) == 1
    assert len(problems) == 1 and "step-000002" in problems[0]


def test_the_digest_sees_every_bit():
    weights = {"a": np.zeros(4, np.float32), "b": np.ones((2, 2), np.float32)}
    changed = {**weights, "b": np.nextafter(weights["b"], 2)}
    reshaped = {**weights, "b": weights["b"].reshape(4)}
    assert len({weights_digest(w) for w in (weights, changed, reshaped)}) == 3


def test_groups_are_cut_from_the_object_they_stand_in(learner):
    first, second = sample(learner, seed=1), sample(learner, seed=2)
    slices = [groups()[1]._replace(source=1), groups()[0]]
    batch = build_batch(slices, [first, second])
    assert (batch.frames[:4] == second.frames[4:8]).all() and (batch.frames[4:] == first.frames[:4]).all()


def test_settings_of_the_small_run_are_a_valid_config():
    assert Config.model_validate(SETTINGS).num_chunks == NUM_CHUNKS
