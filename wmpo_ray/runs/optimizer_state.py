"""The state of an optimizer as named tensors and JSON, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmpo_ray.runs.checkpoint import MOMENTS


def optimizer_to_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """An optimizer's whole state as named tensors (copies) and a JSON-ready tree that refers to them."""
    tensors: dict[str, Tensor] = {}
    state = optimizer.state_dict()
    shapes = [list(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    meta = {
        "class": type(optimizer).__name__,
        "shapes": shapes,
        "groups": _encode(state["param_groups"], "optimizer.groups", tensors),
        "state": _encode({str(i): entry for i, entry in state["state"].items()}, "optimizer.state", tensors),
    }
    return tensors, meta


def optimizer_from_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict) -> None:
    """Put what `optimizer_to_tensors` gave into an optimizer over the same parameters, bit for bit.

    Raises `ValueError` if the class of the optimizer or the shapes of its parameters differ, or `meta` is not from
    `optimizer_to_tensors`.
    """
    try:
        _fill_optimizer(optimizer, tensors, meta)
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"the optimizer's state in the checkpoint is damaged: {error!r}") from error


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for what, saved, present in (
        ("class", meta["class"], type(optimizer).__name__),
        ("shapes", meta["shapes"], [list(parameter.shape) for parameter in parameters]),
    ):
        if saved != present:
            raise ValueError(f"the optimizer's {what} in the checkpoint is {saved}, in this run it is {present}")
    state = {int(i): entry for i, entry in _decode(meta["state"], tensors).items()}
    for i, entry in state.items():
        for name, value in entry.items():
            if name in MOMENTS and isinstance(value, Tensor) and value.shape != parameters[i].shape:
                raise ValueError(
                    f"the optimizer's {name} of parameter {i} is {tuple(value.shape)} in the checkpoint, the parameter "
                    f"{tuple(parameters[i].shape)}"
                )
    optimizer.load_state_dict({"state": state, "param_groups": _decode(meta["groups"], tensors)})
    # load_state_dict casts to the parameter's dtype, which loses bits where the state is kept in another one.
    for i, entry in state.items():
        present = optimizer.state[parameters[i]]
        for name, value in entry.items():
            if isinstance(value, Tensor) and present[name].dtype != value.dtype:
                present[name] = value.to(present[name].device)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: optimizer state of type {type(value).__name__} cannot be saved without pickle")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {key: _decode(item, tensors) for key, item in content.items()}
