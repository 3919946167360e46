"""RLOO, REINFORCE++, GSPO and the switches of DAPO and Dr. GRPO, against their papers' formulas in plain loops."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch

from learners.sharding import ALONE
from tests.support.learner_groups import groups, sample
from tests.support.recorded import tiny_policy
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms.base import OnlineAlgorithm, make_algorithm, trains_in_parts
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.algorithms.grpo import GroupRelative, GrpoBatch, advantages, overlong_penalty
from wmpo_ray.algorithms.gspo import clipped
from wmpo_ray.algorithms.reinforce_pp import over_batch
from wmpo_ray.algorithms.rloo import leave_one_out
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import MAIN_CAMERA

B, N, L = 4, 2, 12  # two groups of two; the tokens of a chunk are three for each of four actions
LENGTHS = (5, 8, 8, 2)  # actions executed
REWARDS = ((1.0, 0.0), (0.0, 1.0))


def algorithm_of(kind: str, **settings: Any) -> GroupRelative:
    own = {key: value for key, value in SETTINGS.items() if key != "grpo"}
    config = Config.model_validate({**own, "algorithm": {"kind": kind}, kind: {**SETTINGS["grpo"], **settings}})
    algorithm = make_algorithm(config)
    assert isinstance(algorithm, GroupRelative)
    return algorithm


class Recited:
    """A policy whose log-probabilities are a table [B, N, L]; observations carry their places in it."""

    def __init__(self, table: torch.Tensor):
        self.table = table.clone().requires_grad_()

    def log_prob(self, observation, record, temperature):
        return self.table[record["row"], record["chunk"]]


def batch_of(algorithm: GroupRelative, spread: float = 0.3) -> tuple[GrpoBatch, Recited]:
    draw = torch.Generator().manual_seed(3)
    behavior = -1 - torch.rand(B, N, L, generator=draw, dtype=torch.float64)
    policy = Recited(behavior + spread * torch.randn(B, N, L, generator=draw, dtype=torch.float64))
    tokens = torch.tensor(LENGTHS)[:, None, None] * 3
    places = torch.arange(N * L).view(1, N, L)
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    rows, chunks = torch.meshgrid(torch.arange(B), torch.arange(N), indexing="ij")
    batch = GrpoBatch(
        images={MAIN_CAMERA: np.zeros((B, N, 1, 1, 3), np.uint8)},
        state=None,
        instructions=("go",) * B,
        metrics={},
        record={"row": rows, "chunk": chunks},
        mask=places < tokens,
        behavior_logprobs=behavior,
        advantage=algorithm.advantages(rewards, torch.ones_like(rewards, dtype=torch.bool)).flatten(),
        known=torch.ones(B, dtype=torch.bool),
    )
    return batch, policy


def losses_of(algorithm: GroupRelative, batch: GrpoBatch, policy: Recited) -> tuple[float, torch.Tensor]:
    """Loss and its gradient [B, N, L], where the parts are those of `chunks_per_pass`."""
    value = 0.0
    for part in algorithm.losses(policy, batch, slice(0, B), ALONE):  # type: ignore[arg-type]
        part.loss.backward()
        value += float(part.loss.detach())
    assert policy.table.grad is not None
    return value, policy.table.grad


def ratios_of(batch: GrpoBatch, table: torch.Tensor, row: int) -> list[torch.Tensor]:
    """Log-ratios of the executed tokens of each chunk that has any."""
    chunks = range(math.ceil(LENGTHS[row] / 4))
    difference = table - batch.behavior_logprobs
    return [difference[row, n][batch.mask[row, n]] for n in chunks]


def clip_gain(ratio: torch.Tensor, advantage: float, low: float, high: float) -> torch.Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def expected_loss(kind: str, algorithm: GroupRelative, batch: GrpoBatch, table: torch.Tensor) -> torch.Tensor:
    """The loss as the papers write it, trajectory by trajectory."""
    gains, settings = [], algorithm.settings
    for row in range(B):
        advantage, ratios = float(batch.advantage[row]), ratios_of(batch, table, row)
        if kind == "rloo":
            gains.append([advantage * sum(table[row, n][batch.mask[row, n]].sum() for n in range(N))])
        elif kind == "gspo":
            sequence = torch.cat(ratios).mean().exp()
            gains.append([clip_gain(sequence, advantage, settings.clip_low, settings.clip_high)])
        else:
            whole = (table - batch.behavior_logprobs)[row, : len(ratios)].sum(-1)  # a chunk counts as a whole
            each = list(whole if settings.ratio == "chunk" else torch.cat(ratios))
            gains.append([clip_gain(one.exp(), advantage, settings.clip_low, settings.clip_high) for one in each])
    mean = getattr(settings, "loss_mean", "trajectory")
    if mean == "ratio":
        return -sum(sum(own) for own in gains) / sum(map(len, gains))
    most = N if getattr(settings, "ratio", "chunk") == "chunk" else N * L
    return -sum(sum(own) / (most if mean == "horizon" else len(own)) for own in gains) / B


@pytest.mark.parametrize("chunks_per_pass", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rloo", {}),
        ("gspo", {"clip_low": 0.05, "clip_high": 0.05}),
        ("gspo", {"clip_low": 0.9, "clip_high": 9.0}),
        ("reinforce_pp", {}),
        ("reinforce_pp", {"baseline": "group", "ratio": "token"}),
        ("grpo", {"loss_mean": "ratio"}),
        ("grpo", {"loss_mean": "ratio", "ratio": "token"}),
        ("grpo", {"loss_mean": "horizon", "advantage_std": "none"}),
        ("grpo", {"loss_mean": "horizon", "ratio": "token"}),
    ],
)
def test_loss_and_gradient_are_the_papers(kind, settings, chunks_per_pass):
    algorithm = algorithm_of(kind, chunks_per_pass=chunks_per_pass, **settings)
    batch, policy = batch_of(algorithm)
    value, gradient = losses_of(algorithm, batch, policy)
    table = policy.table.detach().clone().requires_grad_()
    expected = expected_loss(kind, algorithm, batch, table)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, table.grad, rtol=1e-6, atol=1e-9)
    assert gradient.abs().sum() > 0


def test_gspo_leaves_out_a_trajectory_beyond_the_bounds_as_a_whole():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    gain, is_active, metrics = clipped(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.1, 0.2)
    assert is_active.tolist() == [False, True, True, False]
    torch.testing.assert_close(gain, torch.tensor([1.2, -1.5, 0.5, -0.9]))
    assert float(metrics["policy/clip_fraction"]) == 1.0 and float(metrics["policy/clip_active"]) == 0.5


# -- advantages ----------------------------------------------------------------------------------------------------

MIXED = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
KNOWN = torch.tensor([[True, True, True, False], [True, True, True, True]])


def members() -> list[list[float]]:
    return [
        [float(r) for r, k in zip(rewards, known, strict=True) if k]
        for rewards, known in zip(MIXED, KNOWN, strict=True)
    ]


def test_the_baseline_of_rloo_is_the_mean_of_the_others():
    found = leave_one_out(MIXED, KNOWN)
    for row, own in enumerate(members()):
        wanted = [r - fmean(own[:i] + own[i + 1 :]) for i, r in enumerate(own)]
        torch.testing.assert_close(found[row, KNOWN[row]], torch.tensor(wanted))
    assert found[0, 3] == 0
    alone = torch.tensor([[True, False, False, False], [False] * 4])
    assert torch.equal(leave_one_out(MIXED, alone), torch.zeros(2, 4))


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_reinforce_pp_normalizes_over_the_batch(baseline):
    found = algorithm_of("reinforce_pp", baseline=baseline).advantages(MIXED, KNOWN)
    centred = [[r - (fmean(own) if baseline == "group" else 0.0) for r in own] for own in members()]
    everyone = [r for own in centred for r in own]
    wanted = [(r - fmean(everyone)) / pstdev(everyone) for r in everyone]
    torch.testing.assert_close(found[KNOWN], torch.tensor(wanted))
    assert found[0, 3] == 0
    assert torch.equal(over_batch(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)), torch.zeros(2, 2))
    assert not trains_in_parts(algorithm_of("reinforce_pp", baseline=baseline)), "its mini-batches depend on each other"


def test_advantages_need_not_be_divided():
    found = advantages(MIXED, "none", KNOWN)
    for row, own in enumerate(members()):
        torch.testing.assert_close(found[row, KNOWN[row]], torch.tensor([r - fmean(own) for r in own]))


def test_the_reward_falls_over_the_last_steps():
    """DAPO's Eq. 13 with L_max = 8 and L_cache = 4; a failure lasts to the horizon."""
    assert overlong_penalty(torch.tensor([0, 4, 5, 6, 8]), 8, 4).tolist() == [0, 0, -0.25, -0.5, -1.0]
    success, finish = np.array([True, True, False, False]), np.array([2, 7, 8, 8])
    algorithm = algorithm_of("grpo", overlong_steps=4)
    found, _ = algorithm._advantages([GroupSlice(((0, (0, 4)),), success, finish)])
    shaped = [1.0, 0.25, -1.0, -1.0]
    torch.testing.assert_close(found, torch.tensor([(r - fmean(shaped)) / pstdev(shaped) for r in shaped]))


@pytest.mark.parametrize("kind", ["rloo", "reinforce_pp", "gspo"])
def test_one_small_step_makes_successes_likelier(kind):
    """On a real policy: log-probabilities of the successes rise against those of the failures."""
    algorithm = algorithm_of(kind)
    assert isinstance(algorithm, OnlineAlgorithm)
    policy = tiny_policy(algorithm.config)
    learner: Any = type("Learner", (), {"policy": policy})()
    batch = algorithm.prepare(policy, groups(), [sample(learner)])
    assert isinstance(batch, GrpoBatch)
    everything = torch.ones(len(batch), 2, dtype=torch.bool)

    def lead() -> float:
        with torch.no_grad():
            logprobs = algorithm._logprobs(policy, batch, slice(0, len(batch)), everything).sum((1, 2))
        return float((logprobs * batch.advantage.sign()).sum())

    before = lead()
    for part in algorithm.losses(policy, batch, slice(0, len(batch)), ALONE):
        part.loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert lead() > before
