"""What every classifier of frames does with its inputs: instructions as planes, and batches that are all of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def instruction_planes(instructions: Sequence[str], known: Sequence[str]) -> Tensor:
    """[B, len(known)] float32: 1 for the instruction that was given, 0 elsewhere.

    Raises ValueError for an instruction that is not known.
    """
    places = {text: i for i, text in enumerate(known)}
    if unknown := sorted(set(instructions) - set(known)):
        raise ValueError(f"instruction {unknown[0]!r} was not seen in training; known are {list(known)}")
    index = torch.tensor([places[text] for text in instructions])
    return torch.nn.functional.one_hot(index, len(known)).float()


def in_equal_batches(
    score: Callable[[Tensor, Sequence[str]], Tensor], items: Tensor, texts: Sequence[str], batch_size: int
) -> Tensor:
    """The scores [n, ...] of items [n, ...] with their texts, `batch_size` at a time; the last one fills up the rest.

    The shape of a batch decides how sums are rounded: what an item is given does not depend on what is scored beside it.
    """
    num, texts = len(items), list(texts)
    if not num:
        return items.new_zeros(0).float()
    if missing := -num % batch_size:
        items = torch.cat([items, items[-1:].expand(missing, *items.shape[1:])])
        texts += texts[-1:] * missing
    parts = [score(items[i : i + batch_size], texts[i : i + batch_size]) for i in range(0, len(items), batch_size)]
    return torch.cat(parts)[:num]
