"""How much work and memory a call takes, counted where tensors have shapes but no values (`torch.device("meta")`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

PROBE_DEPTH = 2  # layers; those after the second cost the same each, also in a backward pass that ends in the first


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch's formulas cover the fused attention of GPUs, not that of CPUs. A backward pass is two products for each one;
# that a fused kernel computes the weights again is its own business.
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query.shape, key.shape, value.shape),
    _ATTENTION_BACKWARD: lambda _, query, key, value, *__, **___: (
        2 * sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
}


def extrapolate(measure: Callable[[Sequence[int]], np.ndarray], depths: Sequence[int]) -> list[float]:
    """`measure(depths)` of a network whose cost is linear in each of its depths, from shallow networks only.

    A network of 7 billion parameters takes minutes to walk through, two or three layers of each of its stacks seconds.
    """
    shallow = [min(depth, PROBE_DEPTH) for depth in depths]
    found = base = measure(shallow)
    for i, (depth, probed) in enumerate(zip(depths, shallow, strict=True)):
        if depth > probed:
            deeper = [*shallow[:i], probed + 1, *shallow[i + 1 :]]
            found = found + (depth - probed) * (measure(deeper) - base)
    return found.tolist()


class FusedAttention(TorchFunctionMode):
    """Attention without a matrix of weights in memory, as a GPU runs it; tensors without values would get the plain one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args and args[0].device.type == "meta":
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return _ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


class Meter(TorchDispatchMode):
    """Work and memory of a block of code.

    `flops` counts matrix products, convolutions and attention, a multiply-add being two; `now` and `peak` are the
    bytes of the tensors made inside that still live, and the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and _key(tensor) not in self._seen:
                given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
                if _key(tensor) not in given:  # else a view of what was there before
                    self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
