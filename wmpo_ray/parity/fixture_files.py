"""Reading fixtures: a config.json with sizes and safetensors files of inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json, tensor_specs
from wmpo_ray.parity.case import ParityCase


def read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} holds no sizes")
    return config


def fixture_tensors(path: Path, *needed: str) -> dict[str, Tensor]:
    """The tensors of a fixture file. Raises UserError where `needed` ones are not among them."""
    specs = tensor_specs(path)
    absent = [name for name in needed if name not in specs]
    if absent:
        raise UserError(f"{path} lacks {absent[0]!r}")
    return load_file(path)


def compared(case: str, tensor: str, ours: Tensor, published: Tensor, tolerance: float) -> ParityCase:
    """The largest absolute difference of two tensors of one shape; NaN where shapes or numbers do not agree."""
    if ours.shape != published.shape:
        return ParityCase(case, tensor, float("nan"), tolerance)
    error = (ours.detach().double() - published.double()).abs()
    # max() would not tell of NaN in an empty tensor, and there is nothing to compare in one.
    return ParityCase(case, tensor, float(error.max()) if error.numel() else float("nan"), tolerance)


def differing(case: str, tensor: str, ours: Tensor, published: Tensor) -> ParityCase:
    """The number of entries that are not the same."""
    if ours.shape != published.shape:
        return ParityCase(case, tensor, float("nan"), 0.0)
    return ParityCase(case, tensor, float(torch.count_nonzero(ours != published)), 0.0)
