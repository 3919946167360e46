"""Advantages and the clipped objective against the published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmpo_ray.algorithms import grpo
from wmpo_ray.batching import token_mask
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.files import compared, differing, fixture_tensors, read_config

SINGLE, DOUBLE = 1e-5, 1e-10
NEEDED = ("rewards", "finish_step", "old_log_probs", "new_log_probs", "advantages_official", "response_mask")


def check(folder: Path) -> list[ParityCase]:
    """The reference's token loss in float32, the paper's equations 3-5 in float64."""
    config = read_config(folder)
    data = fixture_tensors(folder / "grpo.safetensors", *NEEDED)
    mask = token_mask(data["finish_step"], config["chunks"], config["K"], config["D"])
    cases = [differing("grpo", "response_mask", mask.flatten(1), data["response_mask"])]
    return [*cases, *_official(config, data, mask), *_paper(config, data, mask)]


def _official(config: dict[str, Any], data: dict[str, Tensor], mask: Tensor) -> Iterator[ParityCase]:
    # Advantages are one number for each trajectory, repeated over its tokens and masked.
    advantage = data["advantages_official"][:, 0]
    clips = config["clip_low"], config["clip_high"]
    new, old = data["new_log_probs"].clone().requires_grad_(), data["old_log_probs"]
    loss, _ = grpo.loss(_chunked(new, mask), _chunked(old, mask), advantage, mask, *clips, "token")
    yield compared("grpo", "official_loss_minibatch", loss[None], data["official_loss_minibatch"], SINGLE)
    (gradient,) = torch.autograd.grad(loss, new)
    yield compared("grpo", "official_grad_new_log_probs", gradient, data["official_grad_new_log_probs"], SINGLE)
    if "official_loss_per_traj" in data:
        rows = zip(*(x.split(1) for x in (_chunked(new, mask), _chunked(old, mask), advantage, mask)), strict=True)
        alone = [grpo.loss(n, o, a, m, *clips, "token")[0] for n, o, a, m in rows]
        yield compared("grpo", "official_loss_per_traj", torch.stack(alone), data["official_loss_per_traj"], SINGLE)


def _paper(config: dict[str, Any], data: dict[str, Tensor], mask: Tensor) -> Iterator[ParityCase]:
    rewards = data["rewards"].double().view(config["groups"], config["n"])
    advantage = grpo.advantages(rewards).flatten()
    yield compared("grpo", "paper_advantages", advantage, data["paper_advantages"], DOUBLE)
    old, everything = data["old_log_probs"].double(), torch.ones_like(mask)
    for name, new, valid in (
        ("paper_objective_all_chunks", "paper_new_log_probs_mild", everything),
        ("paper_objective_all_chunks_large_ratio", "new_log_probs", everything),
        ("paper_objective_valid_chunks", "paper_new_log_probs_mild", mask),
    ):
        inputs = (_chunked(data[new].double(), mask), _chunked(old, mask), data["paper_advantages"], valid)
        loss, _ = grpo.loss(*inputs, config["clip_low"], config["clip_high"], "chunk")
        yield compared("grpo", name, -loss[None], data[name], DOUBLE)


def _chunked(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.view(mask.shape)
