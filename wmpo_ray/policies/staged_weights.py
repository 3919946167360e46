"""Deltas of single optimizer steps: sent ahead while an update is under way, current only with its last one.

At the paper's learning rate the delta of a step has .4 of the bytes of its update's. A replica that has put the earlier
steps aside needs the last one only. What it acts with stays as it is until then, and what it holds in the end is hashed
as ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_changes import decode_changes
from wmpo_ray.policies.weight_payload import WeightMismatchError, WeightPayload, WireTensor, _bits, wire_dtype


def name_step(delta: WeightPayload) -> WeightPayload:
    """The same delta under a name of its own: a hash of what it changes and of the name that it follows.

    The whole weights are hashed only once the update is over: between two steps that would cost more than the step sends.
    """
    digest = hashlib.sha256(delta.base.encode())
    for name, tensor in delta.tensors.items():
        digest.update(f"{name}\0{tensor.shape}\0{tensor.dtype}\0{tensor.is_changes}\0".encode())
        digest.update(tensor.bits.data)
    return replace(delta, version=WeightVersion(delta.version.num_updates, digest.hexdigest()[:16]))


class StagedWeights:
    """Weights between two versions, beside those that a policy acts with.

    `origin`: digest of the version that the first step starts from; `name`: of the last step so far. Each tensor that
    changed is kept whole, in the wire dtype, in the memory of the processor.
    """

    def __init__(self, origin: str):
        self.origin = self.name = origin
        self._bits: dict[str, np.ndarray] = {}  # [n] unsigned

    def add(self, delta: WeightPayload, state: Mapping[str, Tensor]) -> None:
        """Take a further step; `state`: what the policy holds, which is `origin`.

        Raises WeightMismatchError where it does not fit; what was staged cannot be used then.
        """
        if delta.kind != "delta" or delta.base != self.name:
            raise WeightMismatchError(f"a step from {delta.base!r} does not follow {self.name!r}")
        for name, tensor in delta.tensors.items():
            if name not in state:
                raise WeightMismatchError(f"tensor {name} of a step is not one of the policy's")
            self._bits[name] = self._moved(name, tensor, state[name], delta.dtype)
        self.name = delta.version.digest

    def finish(self, delta: WeightPayload, state: Mapping[str, Tensor]) -> WeightPayload:
        """The last step together with all before it: a delta from `origin` that brings what changed as whole tensors."""
        self.add(delta, state)
        tensors = {
            name: WireTensor(wire_dtype(state[name], delta.dtype), tuple(state[name].shape), bits)
            for name, bits in self._bits.items()
        }
        return WeightPayload("delta", delta.version, delta.dtype, tensors, self.origin)

    def _moved(self, name: str, tensor: WireTensor, held: Tensor, dtype: str) -> np.ndarray:
        expected, found = (tuple(held.shape), wire_dtype(held, dtype)), (tensor.shape, tensor.dtype)
        if found != expected:
            raise WeightMismatchError(f"tensor {name} of a step arrives as {found} and the policy holds {expected}")
        bits = self._bits.get(name)
        bits = _bits(held, expected[1]).copy() if bits is None else bits
        if not tensor.is_changes:
            if (tensor.bits.dtype, tensor.bits.shape) != (bits.dtype, bits.shape):
                raise WeightMismatchError(
                    f"tensor {name} of a step: {tensor.bits.dtype} {tensor.bits.shape} do not fit"
                )
            return tensor.bits.copy()  # the memory of the message can be shared and read-only
        try:
            places, steps = decode_changes(tensor.bits, bits.size, bits.itemsize)
        except ValueError as error:
            raise WeightMismatchError(f"tensor {name} of a step: {error}") from error
        bits[places] += steps
        return bits
