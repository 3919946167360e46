"""Filtered cloning: cross-entropy on the decisions of the successes, in parts as in one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.sharding import ALONE
from tests.support.recorded import failures, offline_config, recorded, successes, tiny_policy
from wmpo_ray.algorithms.filtered_bc import FilteredBc
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import MAIN_CAMERA, Observation
from wmpo_ray.core.types import Episodes


def batch_of(episodes: Episodes, **settings):
    config = offline_config("filtered_bc", **{"decisions": "every_step", **settings})
    algorithm, policy = FilteredBc(config), tiny_policy(config)
    return algorithm, policy, algorithm.prepare(policy, episodes, ALONE, lambda: None).batch(0)


def test_only_successes_are_imitated():
    episodes = recorded()
    _, _, batch = batch_of(episodes, episodes_per_update=100)
    assert len(batch) == batch.metrics["cloning/episodes"] == 6
    starts = {frames.tobytes() for frames in episodes.frames[:6, 1]}
    assert {frames.tobytes() for frames in batch.images[MAIN_CAMERA][:, 1]} == starts
    with pytest.raises(UserError, match=r"none of the 6 recorded episodes succeeded.*collect.num_trajectories"):
        batch_of(failures(6))


@pytest.mark.parametrize("chunks_per_pass", [0, 5])
def test_where_all_succeed_it_is_cloning(chunks_per_pass):
    """The mean loss of every decision of every episode, as cloning has it; and so is its gradient."""
    episodes = replace(successes(4), lengths=np.array([3, 16, 9, 10]))
    algorithm, policy, batch = batch_of(episodes, chunks_per_pass=chunks_per_pass)
    frames, texts, actions = [], [], []
    for row, length in enumerate(episodes.lengths):
        for step in range(length):
            frames.append(episodes.frames[row, step])
            texts.append(episodes.instructions[row])
            actions.append(episodes.actions[row, np.minimum(np.arange(step, step + 4), length - 1)])
    whole = policy.cloning_loss(Observation.of(np.stack(frames), texts), torch.from_numpy(np.stack(actions)))
    expected = torch.autograd.grad(whole, list(policy.parameters()))
    losses = []
    for part in algorithm.losses(policy, batch, slice(0, 4), ALONE):
        part.loss.backward()
        losses.append(float(part.loss.detach()))
    assert len(losses) == (1 if not chunks_per_pass else 8)
    assert sum(losses) == pytest.approx(float(whole.detach()), rel=1e-5)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_only_decisions_are_cloned_where_chunks_are_asked_for():
    """An episode of nine steps has decisions at 0, 4 and 8; of the last chunk one action was executed."""
    episodes = replace(successes(4), lengths=np.array([9, 16, 9, 10]))
    _, _, batch = batch_of(episodes, decisions="chunks")
    row = batch.decided.sum(1).argmin()
    assert batch.images[MAIN_CAMERA].shape[1] == 4 and batch.decided[row].tolist() == [True, True, True, False]
    starts = {frames.tobytes() for frames in episodes.frames[:, 4]}
    assert {frames.tobytes() for frames in batch.images[MAIN_CAMERA][:, 1]} == starts
    assert offline_config("filtered_bc", decisions="chunks").num_decisions == 4
    assert offline_config("filtered_bc", decisions="every_step").num_decisions == 16
