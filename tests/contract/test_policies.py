"""What every policy must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.implementations import POLICIES, make_starts, published_flow
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Trajectories
from wmpo_ray.data.spool import load_trajectories, save_trajectories


@pytest.fixture(scope="module", params=[*POLICIES, "pi05"])
def policy(request) -> Policy:
    """pi0.5 is of the kind of pi0, and another network."""
    return POLICIES[request.param]() if request.param in POLICIES else published_flow(request.param)


@pytest.fixture(scope="module")
def seen() -> Observation:
    starts = make_starts()
    return Observation.of(np.stack([s.frames[-1] for s in starts]), [s.instruction for s in starts])


def test_a_decision_has_the_announced_shapes(policy, seen):
    assert isinstance(policy, Policy) and isinstance(policy, torch.nn.Module)
    decision = policy.act(seen, 1.0, [1, 2, 3])
    assert decision.actions.shape == (3, policy.chunk_length, policy.action_dim)
    assert decision.actions.dtype == torch.float32 and decision.actions.abs().max() <= 1
    assert decision.logprobs.ndim == 2 and decision.logprobs.dtype == torch.float32
    assert decision.record and all(len(values) == 3 for values in decision.record.values())


def test_the_record_has_the_log_probabilities_it_was_sampled_with(policy, seen):
    decision = policy.act(seen, 1.6, [1, 2, 3])
    logprobs = policy.log_prob(seen, decision.record, 1.6)
    torch.testing.assert_close(logprobs.detach(), decision.logprobs, atol=1e-5, rtol=0)
    policy.zero_grad()
    logprobs.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_a_row_does_not_depend_on_its_batch(policy, seen):
    """Beyond rounding: the sizes of a batch decide how sums are rounded, and a sample of floats shows it."""
    together, alone = policy.act(seen, 1.0, [1, 2, 3]), policy.act(seen.rows([1]), 1.0, [2])
    is_exact = not any(values.is_floating_point() for values in together.record.values())
    for ours, others in ((together.actions, alone.actions), *zip(together.record.values(), alone.record.values())):
        torch.testing.assert_close(ours[1], others[0], atol=0 if is_exact else 1e-5, rtol=0)
    torch.testing.assert_close(together.logprobs[1], alone.logprobs[0], atol=1e-4, rtol=0)


def test_at_one_shape_a_row_is_the_same_in_any_company(policy, seen):
    one = policy.act(seen, 1.0, [1, 2, 3])
    other = policy.act(seen.rows([2, 1, 0]), 1.0, [5, 2, 4])
    assert torch.equal(one.actions[1], other.actions[1]) and torch.equal(one.logprobs[1], other.logprobs[1])
    assert all(torch.equal(values[1], other.record[name][1]) for name, values in one.record.items())


def test_a_record_is_carried_as_it_is(policy, seen, tmp_path):
    """What a policy sampled survives the spool in its own shape and dtype."""
    decision = policy.act(seen, 1.0, [1, 2, 3])
    record = {name: values[:, None].numpy() for name, values in decision.record.items()}
    images = {camera: frames[:, None] for camera, frames in seen.images.items()}
    made = Trajectories(
        images, seen.instructions, record, decision.logprobs[:, None].numpy(), decision.actions[:, None].numpy(), 0
    )
    back = load_trajectories(tmp_path / "a", save_trajectories(tmp_path / "a", made))
    assert back.record.keys() == record.keys()
    for name, values in record.items():
        assert back.record[name].dtype == values.dtype and np.array_equal(back.record[name], values)


def test_seeds_decide_and_temperature_zero_needs_none(policy, seen):
    one, same, other = (policy.act(seen, 2.0, [seed] * 3).actions for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(*(policy.act(seen, 0.0, [seed] * 3).actions for seed in (0, 1)))


def test_executed_log_probabilities_grow_from_none_to_all_action_by_action(policy, seen):
    length = policy.act(seen, 1.0, [1, 2, 3]).logprobs.shape[1]
    masks = policy.executed(torch.arange(policy.chunk_length + 1))
    assert masks.shape == (policy.chunk_length + 1, length) and masks.dtype == torch.bool
    assert not masks[0].any() and masks[-1].all()
    assert (masks[1:] >= masks[:-1]).all(), "what belongs to the first actions belongs to more of them"
    assert (masks.sum(1).diff() >= 0).all() and torch.equal(policy.executed(torch.tensor([1]))[0], masks[1])


def test_cloning_prefers_what_it_is_shown(policy, seen):
    actions = policy.act(seen, 0.0, [0, 0, 0]).actions
    with torch.no_grad():
        assert policy.cloning_loss(seen, actions) < policy.cloning_loss(seen, -actions)


def test_seeds_decide_the_noise_of_the_cloning_loss(policy, seen):
    actions = policy.act(seen, 0.0, [0, 0, 0]).actions
    with torch.no_grad():
        losses = [float(policy.cloning_loss(seen, actions, seeds)) for seeds in ([4, 5, 6], [4, 5, 6], [0, 1, 2], None)]
        rows = [float(policy.cloning_loss(seen.rows([i]), actions[i : i + 1], [4 + i])) for i in range(3)]
    assert losses[0] == losses[1] and losses[2] == losses[3]
    assert np.mean(rows) == pytest.approx(losses[0], rel=1e-4), "a mean over rows, each with the noise of its seed"
