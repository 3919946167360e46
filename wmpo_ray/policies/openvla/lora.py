"""Low-rank adapters for OpenVLA-OFT, with peft where it is installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmpo_ray.core.errors import ConfigError

ADAPTER = "default"
# Every linear layer that takes part in the computation; the output layer keeps its weights.
TARGETS = (
    r"language_model\.model\.layers\..*_proj"
    r"|vision_backbone\..*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
    r"|projector\.fc[123]"
)


def add_lora(
    policy: nn.Module,
    rank: int = 32,
    alpha: int = 16,
    targets: str = TARGETS,
    *,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Put adapters on the layers whose name matches `targets`, a regular expression; only they are trained from then.

    Their parameters have `lora_` in the name and start without effect, at the same values in every process with the
    same `seed`. Raises ConfigError where peft is missing, for a rank below 1 and for targets that match nothing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("LoRA needs the package peft, which is not installed: pip install peft") from None
    if rank < 1:
        raise ConfigError(f"rank={rank}: an adapter has at least rank 1")
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, policy, ADAPTER)
    except ValueError as error:
        raise ConfigError(f"targets={targets!r} match no layer of this policy: {error}") from error
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)


@torch.no_grad()
def merged_state(policy: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters, under its published names: what they add is in the weights."""
    layers = {name: layer for name, layer in policy.named_modules() if hasattr(layer, "get_delta_weight")}
    state = {}
    for name, tensor in policy.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
        added = layer.get_delta_weight(ADAPTER).to(tensor.dtype) if layer is not None else None
        state[name.replace(".base_layer.", ".")] = tensor if added is None else tensor + added
    return state
