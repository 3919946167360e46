"""Advantages, the clipped objective and its metrics, checked against the published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmpo_ray.algorithms import grpo
from wmpo_ray.algorithms.batching import executed_mask
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, differing, fixture_tensors, read_config
from wmpo_ray.policies.action_tokens import executed_tokens

SINGLE, DOUBLE = 1e-5, 1e-10
NEEDED = ("rewards", "finish_step", "old_log_probs", "new_log_probs", "advantages_official", "response_mask")


class TokenPolicy(NamedTuple):
    """As much of a policy as the mask needs: D tokens for each of K actions."""

    chunk_length: int
    action_dim: int

    def executed(self, num_actions: Tensor) -> Tensor:
        return executed_tokens(num_actions, self.chunk_length, self.action_dim)


class _Fixture(NamedTuple):
    config: dict[str, Any]
    data: dict[str, Tensor]
    mask: Tensor  # [B, N, L] bool

    @property
    def clips(self) -> tuple[float, float]:
        return self.config["clip_low"], self.config["clip_high"]

    @property
    def reward(self) -> float:
        """Of a success, on its last executed token."""
        return self.config.get("reward_coef", 5)

    @property
    def rewards(self) -> Tensor:
        """[groups, n], 1 for a success."""
        return self.data["rewards"].view(self.config["groups"], self.config["n"])

    def chunked(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.data[name].to(dtype).view(self.mask.shape)


def check(folder: Path) -> list[ParityCase]:
    """The reference's advantages, token loss and metrics in float32, the paper's equations 3-5 in float64."""
    config = read_config(folder)
    data = fixture_tensors(folder / "grpo.safetensors", *NEEDED)
    policy = TokenPolicy(config["K"], config["D"])
    fixture = _Fixture(config, data, executed_mask(policy, data["finish_step"], config["chunks"]))
    return [*_layout(fixture), *_official(fixture), *_official_rows(fixture), *_paper(fixture), *_objectives(fixture)]


def _layout(fixture: _Fixture) -> Iterator[ParityCase]:
    data, mask = fixture.data, fixture.mask
    yield differing("grpo", "response_mask", mask.flatten(1), data["response_mask"])
    yield from _counts(fixture, "valid_chunks", mask.any(-1).sum(1))
    yield from _counts(fixture, "group", torch.arange(len(mask)) // fixture.config["n"])
    # The reward of a trajectory is assigned to its last executed token.
    flat = mask.flatten(1)
    is_last = flat & ~torch.nn.functional.pad(flat[:, 1:], (0, 1))
    rewards = fixture.reward * data["rewards"][:, None] * is_last
    if "token_level_rewards" in data:
        yield compared("grpo", "token_level_rewards", rewards, data["token_level_rewards"], 0.0)


def _counts(fixture: _Fixture, name: str, ours: Tensor) -> Iterator[ParityCase]:
    if name in fixture.data:
        yield differing("grpo", name, ours, fixture.data[name])


def _official(fixture: _Fixture) -> Iterator[ParityCase]:
    data, mask = fixture.data, fixture.mask
    advantage = grpo.advantages(fixture.reward * fixture.rewards, "unbiased").flatten()
    spread = advantage[:, None] * mask.flatten(1)
    yield compared("grpo", "advantages_official", spread, data["advantages_official"], SINGLE)
    new = data["new_log_probs"].clone().requires_grad_()
    # As published: one number for each trajectory, repeated over its tokens and masked.
    published = data["advantages_official"][:, 0]
    loss, _ = grpo.loss(
        new.view(mask.shape), fixture.chunked("old_log_probs"), published, mask, *fixture.clips, "token"
    )
    yield compared("grpo", "official_loss_minibatch", loss[None], data["official_loss_minibatch"], SINGLE)
    (gradient,) = torch.autograd.grad(loss, new)
    yield compared("grpo", "official_grad_new_log_probs", gradient, data["official_grad_new_log_probs"], SINGLE)


def _official_rows(fixture: _Fixture) -> Iterator[ParityCase]:
    """Loss and metrics of each trajectory alone."""
    inputs = (
        fixture.chunked("new_log_probs"),
        fixture.chunked("old_log_probs"),
        fixture.data["advantages_official"][:, 0],
        fixture.mask,
    )
    rows = zip(*(tensor.split(1) for tensor in inputs), strict=True)
    alone = [grpo.loss(n, o, a, m, *fixture.clips, "token") for n, o, a, m in rows]
    ours = {"official_loss_per_traj": torch.stack([loss for loss, _ in alone])}
    for name, metric in (
        ("official_clipfrac_per_traj", "policy/clip_active"),
        ("official_ppo_kl_per_traj", "policy/kl"),
    ):
        ours[name] = torch.stack([metrics[metric] for _, metrics in alone])
    for name, values in ours.items():
        if name in fixture.data:
            yield compared("grpo", name, values, fixture.data[name], SINGLE)


def _paper(fixture: _Fixture) -> Iterator[ParityCase]:
    data, rewards = fixture.data, fixture.rewards.double()
    old = fixture.chunked("old_log_probs", torch.float64)
    ours = {
        "paper_advantages": grpo.advantages(rewards).flatten(),
        "paper_advantages_unbiased_eps": grpo.advantages(rewards, "unbiased").flatten(),
    }
    for name, new in (("paper_chunk_ratio", "new_log_probs"), ("paper_chunk_ratio_mild", "paper_new_log_probs_mild")):
        if new in data:
            ours[name] = grpo.log_ratios(fixture.chunked(new, torch.float64), old, "chunk").exp()
    for name, values in ours.items():
        if name in data:
            yield compared("grpo", name, values, data[name], DOUBLE)


def _objectives(fixture: _Fixture) -> Iterator[ParityCase]:
    old, everything = fixture.chunked("old_log_probs", torch.float64), torch.ones_like(fixture.mask)
    for name, new, valid in (
        ("paper_objective_all_chunks", "paper_new_log_probs_mild", everything),
        ("paper_objective_all_chunks_large_ratio", "new_log_probs", everything),
        ("paper_objective_valid_chunks", "paper_new_log_probs_mild", fixture.mask),
    ):
        inputs = (fixture.chunked(new, torch.float64), old, fixture.data["paper_advantages"], valid)
        loss, _ = grpo.loss(*inputs, *fixture.clips, "chunk")
        yield compared("grpo", name, -loss[None], fixture.data[name], DOUBLE)
