"""The state of a training comes back with its bits, into the parts that it was taken from."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.supervised.training_state import NO_CHECKPOINTS, TrainingCheckpoints


def test_numbers_come_back_with_their_bits_and_types(tmp_path):
    numbers = {"count": 2**60 + 1, "loss": 0.1, "none": float("nan"), "inf": float("-inf"), "errors": [0.1, 0.2]}
    checkpoints = TrainingCheckpoints(tmp_path, 1)
    checkpoints.save(1, {}, numbers)
    step, restored = checkpoints.restore({})
    assert step == 1 and repr(sorted(restored.items())) == repr(sorted(numbers.items()))


def test_every_kind_of_part_goes_back_to_where_it_was(tmp_path):
    network, generator, average = (
        torch.nn.Linear(2, 2),
        torch.Generator().manual_seed(1),
        [torch.ones(2), torch.ones(3)],
    )
    optimizer = torch.optim.AdamW(network.parameters())
    parts = {"network": network, "generator": generator, "average": average, "optimizer": optimizer}

    def go_on() -> list[Tensor]:
        for tensor in average:
            tensor.mul_(torch.rand((), generator=generator))
        optimizer.zero_grad()
        network(torch.rand(2, generator=generator)).sum().backward()
        optimizer.step()
        return [tensor.detach().clone() for tensor in (*network.parameters(), *average)]

    go_on()
    checkpoints = TrainingCheckpoints(tmp_path, 1)
    checkpoints.save(1, parts, {})
    first = go_on()
    second = go_on()
    checkpoints.restore(parts)
    again = [go_on(), go_on()]
    assert all(torch.equal(a, b) for a, b in zip([*first, *second], [*again[0], *again[1]], strict=True))


def test_without_a_checkpoint_the_parts_stay_as_they_are(tmp_path):
    average = [torch.ones(2)]
    for checkpoints in (NO_CHECKPOINTS, TrainingCheckpoints(tmp_path / "nothing", 1)):
        assert checkpoints.restore({"average": average}) is None
    assert torch.equal(average[0], torch.ones(2)) and not (tmp_path / "nothing").exists()
