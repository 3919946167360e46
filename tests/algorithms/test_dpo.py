"""DPO: the loss of a pair, which episodes make one, and a gradient in parts that is that of the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.sharding import ALONE
from tests.support.recorded import failures, joined, offline_config, recorded, successes, tiny_policy
from wmpo_ray.algorithms.dpo import Dpo, Pairs, candidates, dpo_loss
from wmpo_ray.core.errors import UserError


def prepared(episodes=None, **settings) -> tuple[Dpo, torch.nn.Module, Pairs]:
    config = offline_config("dpo", **settings)
    dpo, policy = Dpo(config), tiny_policy(config)
    return dpo, policy, dpo.prepare(policy, recorded() if episodes is None else episodes, ALONE, lambda: None)


def test_the_loss_at_the_reference_is_log_two_and_its_gradient_raises_the_preferred():
    logprobs = torch.tensor([-3.0, -5.0, -7.0, -1.0], requires_grad=True)
    loss, metrics = dpo_loss(logprobs, logprobs.detach(), 0.1)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert metrics["preference/margin"] == 0 and metrics["preference/accuracy"] == 0
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.025, 0.025, -0.025, 0.025]), "beta / 2 over the pairs"


def test_the_loss_is_that_of_the_paper():
    logprobs, reference = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.5])
    loss, metrics = dpo_loss(logprobs, reference, 0.5)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-0.5 * (1.0 + 0.5))))
    assert metrics["preference/margin"] == 0.75 and metrics["preference/accuracy"] == 1
    assert (metrics["preference/preferred_logratio"], metrics["preference/rejected_logratio"]) == (1.0, -0.5)


def test_a_success_is_paired_with_failures_from_its_start_state_or_else_at_its_instruction():
    episodes = joined(successes(3), failures(3))
    assert {i: rows.tolist() for i, rows in candidates(episodes).items()} == {0: [3], 1: [4], 2: [5]}
    elsewhere = replace(episodes, seeds=np.arange(6))
    by_text = candidates(elsewhere)
    for i, rows in by_text.items():
        assert [j for j in range(3, 6) if episodes.instructions[j] == episodes.instructions[i]] == rows.tolist()
    assert by_text
    with pytest.raises(UserError, match=r"3 of the 3 recorded episodes succeeded and 0 failed.*no pairs"):
        candidates(successes(3))


def test_an_update_draws_each_success_once_and_the_same_ones_every_time():
    _, _, pairs = prepared()
    rows = pairs.draw(0)
    assert rows.tolist() == pairs.draw(0).tolist() != pairs.draw(1).tolist()
    assert len(set(rows[::2])) == 4 and (rows[::2] < 6).all() and (rows[1::2] == rows[::2] + 6).all()


def test_the_base_policy_is_its_own_reference():
    dpo, policy, pairs = prepared()
    (loss,) = [part.loss for part in dpo.losses(policy, pairs.batch(0), slice(0, 8), ALONE)]
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-4)
    assert (pairs.batch(0).reference < 0).all()


@pytest.mark.parametrize("chunks_per_pass", [0, 1, 3])
def test_parts_have_the_value_and_the_gradient_of_the_whole(chunks_per_pass):
    """The whole: all log-probabilities at once, with gradients, through the loss."""
    dpo, policy, pairs = prepared(chunks_per_pass=chunks_per_pass)
    batch, rows = pairs.batch(0), slice(4, 8)
    with torch.no_grad():  # away from the reference
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    places = batch.mask[rows].any(-1).nonzero()
    record = {"tokens": batch.record["tokens"][rows][places[:, 0], places[:, 1]]}
    logprobs = policy.log_prob(batch.observed(rows, places), record, 1.0)
    executed = batch.mask[rows][places[:, 0], places[:, 1]]
    sums = torch.zeros(4).index_add(0, places[:, 0], (logprobs * executed).sum(1))
    whole, metrics = dpo_loss(sums, batch.reference[rows], 0.1)
    expected = torch.autograd.grad(whole, list(policy.parameters()))
    policy.zero_grad()
    parts = []
    for part in dpo.losses(policy, batch, rows, ALONE):
        part.loss.backward()
        parts.append(part)
    assert len(parts) == (math.ceil(len(places) / chunks_per_pass) if chunks_per_pass else 1)
    assert sum(float(part.loss.detach()) for part in parts) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert parts[0].metrics["preference/margin"] == pytest.approx(float(metrics["preference/margin"]), rel=1e-3)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_what_happens_after_the_end_teaches_nothing():
    """Neither the actions after the end of an episode, nor the frames at which nothing was decided any more."""
    episodes = recorded()
    short = replace(episodes, lengths=np.full(12, 6))
    changed = replace(short, actions=short.actions.copy(), frames=short.frames.copy())
    changed.actions[:, 6:], changed.frames[:, 8:] = 0.9, 7
    references = [prepared(each)[2].batch(0).reference for each in (episodes, short, changed)]
    assert torch.equal(references[1], references[2]) and not torch.equal(references[0], references[1])
