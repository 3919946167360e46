"""The policy against its fixtures: forward passes, tokens, losses and gradients of the authors' classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_json, tensor_specs
from wmpo_ray.model_files.weight_files import find_safetensors
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.policies.openvla.actions import ActionStatistics, ActionTokenizer
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy, token_loss
from wmpo_ray.policies.openvla.published_files import STATISTICS
from wmpo_ray.policies.openvla.settings import OpenVLAConfig, build_config

LOGITS, EXACT, DOUBLE = 1e-4, 0.0, 1e-10
GRADIENT = 1e-5  # of one parameter; their norm over the whole network gets the tolerance of the logits
TEMPERATURE = 1.6

Tensors = Mapping[str, Tensor]


def check(folder: Path) -> list[ParityCase]:
    """Every comparison that the folder's fixtures allow. Raises UserError for files that are missing or damaged."""
    settings = read_json(folder / "config.json", MAX_SETTINGS_BYTES)
    policy = load_fixture(folder, settings)
    statistics = ActionStatistics.find(
        read_json(folder / STATISTICS), settings.get("unnorm_key"), policy.action_dim, str(folder / STATISTICS)
    )
    cases: list[ParityCase] = []
    for name, compare in (
        ("forward_a", _forward),
        ("forward_padded", _padded),
        ("action_tokenizer", _tokenizer),
        ("sft", _cloning),
    ):
        tensors = _fixture(folder, name)
        try:
            cases += [
                ParityCase(f"policy/{name}", tensor, _error(ours, tensors[tensor]), tolerance)
                for tensor, ours, tolerance in compare(policy, statistics, tensors)
            ]
        except KeyError as error:
            raise UserError(f"{folder / name}.safetensors lacks {error}") from error
    return cases + _gradients(policy, _fixture(folder, "forward_a"), _fixture(folder, "grads"))


def load_fixture(folder: Path, settings: Mapping[str, Any]) -> OpenVLAOFTPolicy:
    """The policy of a fixture, whose config.json holds the published one and how its towers were shrunk."""
    config = fixture_config(settings, str(folder / "config.json"))
    return OpenVLAOFTPolicy.from_weights(config, find_safetensors(folder, "model"), torch.float32).eval()


def fixture_config(settings: Mapping[str, Any], where: str) -> OpenVLAConfig:
    try:
        overrides = {name.partition("(")[0]: sizes for name, sizes in settings["tiny_timm_overrides"].items()}
        text = {**settings["hf_config"]["text_config"], **settings["llama_effective"]}
        published = {**settings["hf_config"], "text_config": text, "timm_overrides": overrides}
        chunk = {"num_actions_chunk": settings["num_actions_chunk"], "action_dim": settings["action_dim"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{where} is no config of a policy fixture: {error!r}") from error
    return build_config(published, chunk)


def _fixture(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    tensor_specs(path)
    return load_file(path)


def _error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite for another shape, and where one of them is not a number."""
    if ours.shape != theirs.shape:
        return math.inf
    difference = float((ours.detach().double() - theirs.double()).abs().max())
    return math.inf if math.isnan(difference) else difference


Comparison = Iterator[tuple[str, Tensor, float]]  # tensor of the fixture, ours, tolerance


def _logits(policy: OpenVLAOFTPolicy, tensors: Tensors, **options: bool) -> Tensor:
    return policy(tensors["input_ids"], tensors["pixel_values"], tensors.get("attention_mask"), **options)


def _decoded(policy: OpenVLAOFTPolicy, statistics: ActionStatistics, kind: str, ids: Tensor) -> Comparison:
    normalized = policy.action_tokenizer.decode(ids).unflatten(1, (policy.chunk_length, policy.action_dim))
    yield f"{kind}_normalized_actions", normalized.flatten(0, 1), DOUBLE
    yield f"{kind}_actions", statistics.unnormalize(normalized), DOUBLE


@torch.no_grad()
def _forward(policy: OpenVLAOFTPolicy, statistics: ActionStatistics, tensors: Tensors) -> Comparison:
    yield from _sequence(policy, tensors)
    full = _logits(policy, tensors, full_vocabulary=True)
    yield "logits_full_vocab", full, LOGITS
    logits = _logits(policy, tensors)
    yield "action_logits", logits, LOGITS
    greedy = logits.argmax(-1) + policy.first_action_id
    yield "greedy_ids", greedy, EXACT
    yield from _decoded(policy, statistics, "greedy", greedy)
    sampled = tensors["sampled_ids"]
    yield from _decoded(policy, statistics, "sampled", sampled)
    bins = (sampled - policy.first_action_id)[..., None]
    hot, plain = F.log_softmax(logits / TEMPERATURE, -1), F.log_softmax(logits, -1)
    yield "logprobs_T1p6", hot.gather(-1, bins)[..., 0], LOGITS
    yield "entropy_T1p6", -(hot.exp() * hot).sum(-1), LOGITS
    yield "logprobs_T1", plain.gather(-1, bins)[..., 0], LOGITS
    # A sum of L values, each within its tolerance.
    yield "logprob_sum_per_chunk", hot.gather(-1, bins)[..., 0].double().sum(1), LOGITS * bins.shape[1]


def _sequence(policy: OpenVLAOFTPolicy, tensors: Tensors) -> Comparison:
    """The language model's inputs; values at masked positions are ignored."""
    if "act.multimodal_embeds" not in tensors:
        return  # intermediate outputs are there for debugging only
    ours, lengths = policy.embed(tensors["input_ids"], tensors["pixel_values"], tensors["attention_mask"])
    seen = torch.arange(ours.shape[1]) < lengths[:, None]
    yield "act.multimodal_attention_mask", seen.long(), EXACT
    theirs = tensors["act.multimodal_embeds"]
    if theirs.shape == ours.shape:
        ours = torch.where(seen[..., None], ours, theirs)
    yield "act.multimodal_embeds", ours, LOGITS


@torch.no_grad()
def _padded(policy: OpenVLAOFTPolicy, statistics: ActionStatistics, tensors: Tensors) -> Comparison:
    yield from _sequence(policy, tensors)
    logits = _logits(policy, tensors)
    yield "action_logits_unpadded_rows", logits, LOGITS
    greedy = logits.argmax(-1) + policy.first_action_id
    yield "greedy_ids", greedy, EXACT
    yield from _decoded(policy, statistics, "greedy", greedy)


def _tokenizer(policy: OpenVLAOFTPolicy, statistics: ActionStatistics, tensors: Tensors) -> Comparison:
    tokenizer: ActionTokenizer = policy.action_tokenizer
    encoded = tokenizer.encode(tensors["encode_values"])
    yield "encoded_ids", encoded, EXACT
    yield "decoded_values", tokenizer.decode(encoded), DOUBLE
    yield "table_normalized", tokenizer.decode(tensors["table_ids"]), DOUBLE
    yield "unnorm_out", statistics.unnormalize(tensors["unnorm_in"]), DOUBLE


@torch.no_grad()
def _cloning(policy: OpenVLAOFTPolicy, statistics: ActionStatistics, tensors: Tensors) -> Comparison:
    num_tokens = policy.chunk_length * policy.action_dim
    prompts, tokens = tensors["input_ids"][:, : -num_tokens - 1], tensors["input_ids"][:, -num_tokens - 1 : -1]
    logits = policy(prompts, tensors["pixel_values"], full_vocabulary=True, with_stop=True)
    yield f"logits_predicting_{num_tokens + 1}", logits, LOGITS
    yield "loss", token_loss(logits, tokens)[None], LOGITS


def _gradients(policy: OpenVLAOFTPolicy, forward: Tensors, tensors: Tensors) -> list[ParityCase]:
    policy.zero_grad()
    logprobs = F.log_softmax(_logits(policy, forward) / TEMPERATURE, -1)
    bins = (forward["sampled_ids"] - policy.first_action_id)[..., None]
    (-logprobs.gather(-1, bins).mean()).backward()
    gradients = {f"grad.{name}": p.grad for name, p in policy.named_parameters() if p.grad is not None}
    total = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
    ours = {**gradients, "grad_global_norm": total[None]}
    policy.zero_grad()
    return [
        ParityCase(
            "policy/grads",
            name,
            _error(ours[name], tensor) if name in ours else math.inf,
            LOGITS if name == "grad_global_norm" else GRADIENT,
        )
        for name, tensor in tensors.items()
    ]
