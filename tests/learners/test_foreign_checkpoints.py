"""A checkpoint that is whole and belongs to something else ends in a line, and leaves what was to be filled as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learners.learner_checkpoint import LearnerCheckpoints
from learners.supervised.training_state import TrainingCheckpoints
from wmpo_ray.config.run import CheckpointConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.checkpoint import save_checkpoint
from wmpo_ray.runs.optimizer_state import optimizer_to_tensors

FACTS: dict[str, Any] = {
    "num_updates": 1,
    "num_skipped": 0,
    "metrics": [{"update": 1}],
    "digests": {"1": "a"},
    "groups": [[0, 1]],
    "earlier": [],
}


def trained(width: int = 3) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(width)
    network = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(width)).sum().backward()
    optimizer.step()
    return network, optimizer


def checkpoints(root: Path, width: int = 3) -> LearnerCheckpoints:
    network, optimizer = trained(width)
    return LearnerCheckpoints(root, CheckpointConfig(), network, optimizer)  # type: ignore[arg-type]


def refused(store: LearnerCheckpoints) -> str:
    before = {name: tensor.clone() for name, tensor in store.policy.state_dict().items()}
    with pytest.raises(UserError) as caught:
        store.load([])
    assert all(torch.equal(tensor, before[name]) for name, tensor in store.policy.state_dict().items())
    return str(caught.value)


def test_a_checkpoint_of_another_policy_is_named(tmp_path):
    checkpoints(tmp_path, 3).save(1, FACTS, {})
    assert checkpoints(tmp_path, 3).load([]) is not None
    message = refused(checkpoints(tmp_path, 4))
    assert "step-000001" in message and "(2, 3)" in message and "(2, 4)" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_updates", -1),
        ("num_updates", "1"),
        ("metrics", {}),
        ("digests", {"1": 2}),
        ("groups", [[1]]),
        ("groups", [[-1, 0]]),
        ("earlier", None),
    ],
)
def test_facts_that_are_none_are_named(tmp_path, key, value):
    checkpoints(tmp_path).save(1, {**FACTS, key: value}, {})
    message = refused(checkpoints(tmp_path))
    assert "meta.json" in message and key in message


def test_earlier_weights_that_are_not_there_are_named(tmp_path):
    checkpoints(tmp_path).save(1, {**FACTS, "earlier": [0]}, {})
    assert "earlier-0" in refused(checkpoints(tmp_path))


@pytest.mark.parametrize(
    "meta",
    [
        {"class": "AdamW"},
        {"class": "AdamW", "shapes": [[2, 3], [2]], "groups": 3, "state": {}},
        {"class": "AdamW", "shapes": [[2, 3], [2]], "groups": [], "state": {"dict": {"7": {"dict": {}}}}},
        {"class": "SGD", "shapes": [[2, 3], [2]], "groups": [], "state": {}},
    ],
)
def test_optimizer_state_that_is_none_is_named(tmp_path, meta):
    network, _ = trained()
    tensors = {f"policy.{name}": tensor for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path, 1, tensors, {**FACTS, "optimizer": meta}, keep=1)
    with pytest.raises(UserError, match="step-000001: .*; use the config"):
        checkpoints(tmp_path).load([])


def test_moments_of_another_shape_are_refused(tmp_path):
    network, optimizer = trained()
    tensors, meta = optimizer_to_tensors(optimizer)
    moment = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensors[moment] = torch.zeros(1)
    tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"policy.{name}": tensor for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path, 1, tensors, {**FACTS, "optimizer": meta}, keep=1)
    with pytest.raises(UserError, match=r"exp_avg is \(1,\)"):
        checkpoints(tmp_path).load([])


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ({"mean": [torch.ones(1)]}, {"mean": [torch.zeros(3)]}),
        ({"mean": [torch.ones(3)]}, {"mean": [torch.zeros(3), torch.zeros(3)]}),
        ({"mean": [torch.ones(3).double()]}, {"mean": [torch.zeros(3)]}),
        ({"net": nn.Linear(2, 2)}, {"net": nn.Linear(2, 3)}),
        ({"net": nn.Linear(2, 2)}, {"optimizer": trained()[1]}),
        ({"generator": [torch.zeros(3)]}, {"generator": torch.Generator()}),
    ],
)
def test_the_state_of_another_training_is_refused_before_anything_is_filled(tmp_path, saved, wanted):
    store = TrainingCheckpoints(tmp_path, every_steps=1)
    store.save(1, saved, {"loss": 0.5})
    assert store.restore(saved) == (1, {"loss": 0.5})
    with pytest.raises(UserError, match="step-000001"):
        store.restore(wanted)
    assert all(not tensor.any() for tensor in wanted.get("mean", ()))
