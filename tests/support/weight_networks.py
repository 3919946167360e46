"""A network with every sort of tensor that weights may have, and what training does to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.policies.weight_exchange import WeightEncoder

TRAINED = {"head.weight", "scale"}
SPECIAL = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, 3.4e38])


class Network(nn.Module):
    """Every sort of tensor that a state dict may hold."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(6, 25)
        self.head = nn.Linear(25, 6)
        self.head.weight = self.words.weight  # shared: two names, one tensor
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.narrow = nn.Parameter(torch.randn(4, 2).bfloat16())
        self.turned = nn.Parameter(torch.randn(3, 4).t())  # not contiguous
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("nothing", torch.zeros(0, 3))


def disturb(network: Network, seed: int, share: float, names: set[str] | None = None) -> None:
    """Change about `share` of the elements by an optimizer's little, or to a value that arithmetic would not keep."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if names is not None and name not in names:
                continue
            moved = torch.rand(parameter.shape, generator=generator) < share
            step = torch.randn(parameter.shape, generator=generator) * 1e-3
            odd = SPECIAL[torch.randint(len(SPECIAL), parameter.shape, generator=generator)]
            step = torch.where(torch.rand(parameter.shape, generator=generator) < 0.1, odd, parameter.float() + step)
            parameter.copy_(torch.where(moved, step.to(parameter.dtype), parameter))
    if names is None and moved.any():
        network.count += 1


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


def assert_identical(network: Network, other: Network) -> None:
    for (name, ours), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert np.array_equal(bits(ours), bits(theirs)), name


def encoder(network: Network, payload: str = "full", dtype: str = "float32") -> WeightEncoder:
    return WeightEncoder(network, WeightsConfig(payload=payload, dtype=dtype), TRAINED | {"words.weight"})
