"""The published numerical fixtures: a tiny network of the released architecture with random weights."""

import functools
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from wmpo_ray.world_models.stdit import STDiT

GOLDEN = Path(__file__).parents[1] / "golden" / "world_model"


@functools.cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def published_network() -> STDiT:
    config = json.loads((GOLDEN / "config.json").read_text())
    sizes = {key: value for key, value in config.items() if key not in ("note", "input_size")}
    network = STDiT(**sizes, keep_unused_parameters=True)
    network.load_state_dict(tensors("model"), strict=True)
    return network.eval()


def max_difference(one: Tensor, other: Tensor) -> float:
    return float((one.detach().float() - other.float()).abs().max())
