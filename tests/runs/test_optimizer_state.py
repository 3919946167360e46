"""An optimizer that was serialized trains on bit for bit, without pickle."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.same_bits import assert_same_bits
from wmpo_ray.runs.optimizer_state import optimizer_from_tensors, optimizer_to_tensors

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.999)),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


def build(kind: str, sizes, dtype) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]
    if kind == "LBFGS" or len(parameters) < 2:
        return parameters, OPTIMIZERS[kind](parameters)
    groups = [{"params": parameters[:1], "weight_decay": 0.0}, {"params": parameters[1:]}]
    return parameters, OPTIMIZERS[kind](groups)


def train(parameters, optimizer, num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        grads = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters]
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        optimizer.step(lambda: torch.tensor(1.0))


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    sizes=st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    num_steps=st.integers(0, 3),
)
def test_an_optimizer_that_was_serialized_trains_on_bit_for_bit(kind, sizes, dtype, num_steps):
    parameters, optimizer = build(kind, sizes, dtype)
    train(parameters, optimizer, num_steps, seed=1)
    tensors, meta = optimizer_to_tensors(optimizer)
    tensors, meta = safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(meta))
    other_parameters, other = build(kind, sizes, dtype)
    optimizer_from_tensors(other, tensors, meta)
    assert_same_bits(other.state_dict(), optimizer.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(other_parameters, parameters, strict=True):
            mine.copy_(theirs)
    for each, its_optimizer in ((parameters, optimizer), (other_parameters, other)):
        train(each, its_optimizer, 2, seed=2)
    assert_same_bits(other_parameters, parameters)
    assert_same_bits(other.state_dict(), optimizer.state_dict())


def test_state_that_is_finer_than_its_parameter_keeps_its_bits():
    parameters, optimizer = build("AdamW", [[4]], torch.bfloat16)
    train(parameters, optimizer, 1, seed=1)
    fine = torch.randn(4, generator=torch.Generator().manual_seed(3))
    optimizer.state[parameters[0]]["exp_avg"] = fine
    other = build("AdamW", [[4]], torch.bfloat16)[1]
    optimizer_from_tensors(other, *optimizer_to_tensors(optimizer))
    assert_same_bits(other.state_dict()["state"][0]["exp_avg"], fine)


def test_the_copy_does_not_change_when_training_goes_on():
    parameters, optimizer = build("AdamW", [[4]], torch.float32)
    train(parameters, optimizer, 1, seed=1)
    tensors, meta = optimizer_to_tensors(optimizer)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    other_parameters, other = build("AdamW", [[4]], torch.float32)
    optimizer_from_tensors(other, tensors, meta)
    train(parameters, optimizer, 1, seed=2)
    train(other_parameters, other, 1, seed=2)
    assert_same_bits(tensors, before)


def test_another_optimizer_or_other_shapes_are_refused():
    tensors, meta = optimizer_to_tensors(build("AdamW", [[4]], torch.float32)[1])
    with pytest.raises(ValueError, match="AdamW.*SGD"):
        optimizer_from_tensors(build("SGD", [[4]], torch.float32)[1], tensors, meta)
    with pytest.raises(ValueError, match=r"\[\[4\]\].*\[\[5\]\]"):
        optimizer_from_tensors(build("AdamW", [[5]], torch.float32)[1], tensors, meta)


def test_state_that_needs_pickle_is_refused():
    parameters, optimizer = build("AdamW", [[4]], torch.float32)
    optimizer.state[parameters[0]]["odd"] = object()
    with pytest.raises(TypeError, match=r"optimizer\.state.*odd"):
        optimizer_to_tensors(optimizer)
