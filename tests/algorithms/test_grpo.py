"""GRPO against the paper's equations and published metrics (float64 fixtures computed from Eq. 3-5)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learners.sharding import ALONE
from tests.support.learner_groups import sample
from tests.support.recorded import tiny_policy
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms import grpo
from wmpo_ray.algorithms.batching import GroupSlice, executed_mask
from wmpo_ray.config.run import Config
from wmpo_ray.parity.grpo_fixtures import TokenPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "grpo"
K, D, CHUNKS, GROUPS, SIZE = 8, 7, 4, 3, 4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "grpo.safetensors")


def chunked(x: torch.Tensor) -> torch.Tensor:
    return x.view(len(x), CHUNKS, K * D)


def test_advantages_are_those_of_algorithm_1(golden):
    rewards = golden["rewards"].double().view(GROUPS, SIZE)
    ours = grpo.advantages(rewards).flatten()
    torch.testing.assert_close(ours, golden["paper_advantages"], atol=1e-10, rtol=0)


def test_unbiased_advantages_are_the_published_ones(golden):
    rewards = golden["rewards"].view(GROUPS, SIZE)
    ours = grpo.advantages(rewards.double(), "unbiased").flatten()
    torch.testing.assert_close(ours, golden["paper_advantages_unbiased_eps"], atol=1e-10, rtol=0)
    five = grpo.advantages(5 * rewards, "unbiased").flatten()[:, None] * golden["response_mask"]
    torch.testing.assert_close(five, golden["advantages_official"], atol=1e-5, rtol=0)


def test_a_group_of_one_is_its_own_reward_and_equal_ones_are_nothing():
    alone = grpo.advantages(torch.tensor([[5.0], [0.0]]), "unbiased")
    torch.testing.assert_close(alone, torch.tensor([[5.0 / (1 + 1e-6)], [0.0]]))
    assert torch.equal(grpo.advantages(torch.ones(2, 4), "unbiased"), torch.zeros(2, 4))


def test_metrics_of_each_trajectory_are_the_published_ones(golden):
    mask = executed_mask(TokenPolicy(K, D), golden["finish_step"], CHUNKS)
    advantage = golden["advantages_official"][:, 0]
    new, old = chunked(golden["new_log_probs"]), chunked(golden["old_log_probs"])
    for row in range(len(new)):
        one = slice(row, row + 1)
        _, metrics = grpo.loss(new[one], old[one], advantage[one], mask[one], 0.2, 0.28, "token")
        clipped, kl = golden["official_clipfrac_per_traj"][row], golden["official_ppo_kl_per_traj"][row]
        torch.testing.assert_close(metrics["policy/clip_active"], clipped, atol=1e-6, rtol=0)
        torch.testing.assert_close(metrics["policy/kl"], kl, atol=1e-6, rtol=0)


def test_chunk_objective_is_eq_4(golden):
    everything = torch.ones(len(golden["rewards"]), CHUNKS, K * D, dtype=torch.bool)
    old = chunked(golden["old_log_probs"].double())
    for suffix, new in (("", "paper_new_log_probs_mild"), ("_large_ratio", "new_log_probs")):
        loss, _ = grpo.loss(
            chunked(golden[new].double()), old, golden["paper_advantages"], everything, 0.2, 0.28, "chunk"
        )
        expected = golden[f"paper_objective_all_chunks{suffix}"][0]
        torch.testing.assert_close(-loss, expected, atol=1e-10, rtol=0)


def test_chunks_after_the_finish_step_are_masked(golden):
    mask = executed_mask(TokenPolicy(K, D), golden["finish_step"], CHUNKS)
    loss, _ = grpo.loss(
        chunked(golden["paper_new_log_probs_mild"]),
        chunked(golden["old_log_probs"].double()),
        golden["paper_advantages"],
        mask,
        0.2,
        0.28,
        "chunk",
    )
    torch.testing.assert_close(-loss, golden["paper_objective_valid_chunks"][0], atol=1e-10, rtol=0)


def test_token_mask_ends_at_the_finish_step(golden):
    mask = executed_mask(TokenPolicy(K, D), golden["finish_step"], CHUNKS).flatten(1)
    assert torch.equal(mask, golden["response_mask"])


def test_token_loss_and_its_gradient_are_the_published_ones(golden):
    new = golden["new_log_probs"].clone().requires_grad_()
    # The published advantages are one number for each trajectory, repeated over its tokens and masked.
    advantage = golden["advantages_official"][:, 0]
    mask = executed_mask(TokenPolicy(K, D), golden["finish_step"], CHUNKS)
    loss, _ = grpo.loss(chunked(new), chunked(golden["old_log_probs"]), advantage, mask, 0.2, 0.28, "token")
    torch.testing.assert_close(loss, golden["official_loss_minibatch"][0], atol=1e-5, rtol=0)
    loss.backward()
    torch.testing.assert_close(new.grad, golden["official_grad_new_log_probs"], atol=1e-5, rtol=0)


def test_a_ratio_for_each_step_multiplies_to_that_of_the_chunk_and_of_one_step_is_it():
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 3, 4, 12, generator=generator, dtype=torch.float64) * 0.1
    mask = torch.zeros(3, 4, 12, dtype=torch.bool)
    mask[:, :2] = True
    steps = grpo.log_ratios(new, old, "step", 3)
    assert steps.shape == (3, 12)
    torch.testing.assert_close(steps.view(3, 4, 3).sum(-1), grpo.log_ratios(new, old, "chunk"))
    torch.testing.assert_close(steps[0, 1], (new - old)[0, 0, 4:8].sum())
    advantage = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    single, chunk = (grpo.loss(new, old, advantage, mask, 0.2, 0.28, ratio)[0] for ratio in ("step", "chunk"))
    assert torch.equal(single, chunk)


def test_the_loss_over_steps_is_the_mean_over_trajectories_chunks_and_steps():
    """Flow-GRPO's objective (arXiv 2505.05470, Eq. 5 without its penalty), summed up by hand in float64."""
    generator = np.random.default_rng(0)
    new, old = generator.normal(0, 0.2, (2, 2, 2, 6))
    advantage, num_chunks = np.array([1.0, -1.0]), (2, 1)
    expected = 0.0
    for row in range(2):
        gains = []
        for chunk in range(num_chunks[row]):
            for step in range(3):
                ratio = np.exp(sum(new[row, chunk, 2 * step + i] - old[row, chunk, 2 * step + i] for i in range(2)))
                gains.append(min(ratio * advantage[row], np.clip(ratio, 0.8, 1.28) * advantage[row]))
        expected -= np.mean(gains) / 2
    mask = torch.ones(2, 2, 6, dtype=torch.bool)
    mask[1, 1] = False
    tensors = (torch.from_numpy(values) for values in (new, old, advantage))
    loss, _ = grpo.loss(*tensors, mask, 0.2, 0.28, "step", 3)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_equal_rewards_give_no_advantage_and_no_gradient():
    assert torch.equal(grpo.advantages(torch.ones(2, 4)), torch.zeros(2, 4))
    new = torch.randn(4, 2, 6, requires_grad=True)
    mask = torch.ones(4, 2, 6, dtype=torch.bool)
    loss, _ = grpo.loss(new, new.detach(), torch.zeros(4), mask, 0.2, 0.28)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.count_nonzero(new.grad) == 0


def test_padding_changes_nothing():
    """A trajectory's share of the objective does not depend on masked chunks behind it."""
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 3, 3, 6, generator=generator) * 0.1
    advantage = torch.tensor([1.0, -1.0, 0.5])
    mask = torch.ones(3, 3, 6, dtype=torch.bool)
    short, _ = grpo.loss(new, old, advantage, mask, 0.2, 0.28)
    noise = torch.randn(3, 2, 6, generator=generator)
    padded, _ = grpo.loss(
        torch.cat([new, noise], 1),
        torch.cat([old, -noise], 1),
        advantage,
        torch.cat([mask, torch.zeros(3, 2, 6, dtype=torch.bool)], 1),
        0.2,
        0.28,
    )
    torch.testing.assert_close(short, padded)


def test_a_gain_is_clipped_and_a_loss_is_not():
    """min(r A, clip(r) A): beyond the upper bound a positive advantage has no gradient, a negative one keeps it."""
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    for advantage, has_gradient in ((1.0, False), (-1.0, True)):
        new = torch.full((1, 1, 1), 0.5, requires_grad=True)
        loss, metrics = grpo.loss(new, torch.zeros(1, 1, 1), torch.tensor([advantage]), mask, 0.2, 0.28)
        loss.backward()
        assert bool(new.grad.abs().sum() > 0) is has_gradient
        assert float(metrics["policy/clip_fraction"]) == 1.0


@pytest.mark.parametrize("deviation", ["population", "unbiased"])
def test_a_member_of_unknown_outcome_is_as_if_it_had_not_been_there(deviation):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    known = torch.tensor([[True, True, False, True], [True, True, True, True]])
    ours = grpo.advantages(rewards, deviation, known)
    assert torch.equal(ours[0, known[0]], grpo.advantages(rewards[:1, known[0]], deviation)[0])
    assert ours[0, 2] == 0 and torch.equal(ours[1], grpo.advantages(rewards, deviation)[1])
    all_known = torch.ones_like(known)
    assert torch.equal(grpo.advantages(rewards, deviation, all_known), grpo.advantages(rewards, deviation))


def test_the_loss_is_a_mean_over_trajectories_of_known_outcome():
    """An unknown fourth member gives the loss and gradient of a batch of the other three."""
    config = Config.model_validate(SETTINGS)
    success, learner = np.array([True, False, False, True]), SimpleNamespace(policy=tiny_policy(config))
    sampled = sample(learner, 4)  # type: ignore[arg-type]

    def gradient(rows: tuple[int, int], known: list[bool] | None) -> tuple[float, torch.Tensor]:
        algorithm = grpo.Grpo(config)
        mask = None if known is None else np.array(known)
        group = GroupSlice(((0, rows),), success[slice(*rows)], np.full(rows[1] - rows[0], 8), mask)
        batch = algorithm.prepare(learner.policy, [group], [sampled])
        learner.policy.zero_grad()
        value = 0.0
        for part in algorithm.losses(learner.policy, batch, slice(0, len(batch)), ALONE):
            part.loss.backward()
            value += float(part.loss.detach())
        return value, torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None])

    three, four = gradient((0, 3), None), gradient((0, 4), [True, True, True, False])
    assert four[0] == pytest.approx(three[0], rel=1e-5, abs=1e-6)
    assert three[1].abs().sum() > 0
    torch.testing.assert_close(four[1], three[1], rtol=1e-4, atol=1e-7)
