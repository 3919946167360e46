"""Policy weights on their way from the learner to the replicas: what is sent, and the check that it arrived.

The weights travel in the *wire dtype*: a floating tensor that is wider than `weights.dtype` is rounded to it, all others
go as they are. A digest is a hash of every tensor in the wire dtype, so a learner in float32 and a replica in bfloat16
agree on it. Values travel as their bits, in unsigned integers: a NaN, a negative zero and bfloat16 arrive unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.types import WeightVersion

Kind = Literal["full", "adapter", "delta"]

# The signed integers stand between numpy, which has no bfloat16, and torch, whose unsigned ones can do little.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightTransferError(RuntimeError):
    """Weights did not arrive; the full payload, sent through the object store, mends it."""


class WeightMismatchError(WeightTransferError):
    """A payload does not fit the weights that a replica holds; the replica is as it was."""


class BroadcastError(WeightTransferError):
    """A broadcast in a group was cut off; the replica is as it was."""


@dataclass(frozen=True)
class WireTensor:
    """One tensor, or the elements of it that changed."""

    dtype: str  # of the values on the wire, such as "bfloat16"
    shape: tuple[int, ...]  # of the tensor
    bits: np.ndarray  # [n] unsigned, n = all elements in C order, or those at `indices`
    indices: np.ndarray | None = None  # [n] uint32 (uint64 beyond 2^32 elements), flat, ascending

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes + (0 if self.indices is None else self.indices.nbytes)

    def values(self) -> Tensor:
        """The values [n] on the CPU, in memory of their own."""
        # Copied: the bits may be a read-only view into shared memory.
        signed = self.bits.copy().view(f"i{self.bits.itemsize}")
        return torch.from_numpy(signed).view(_dtype(self.dtype))


@dataclass(frozen=True)
class WeightPayload:
    """What a replica needs for one version: all tensors, the trained ones, or what changed since `base`."""

    kind: Kind
    version: WeightVersion
    dtype: str  # the wire dtype
    tensors: dict[str, WireTensor]
    base: str = ""  # digest of the version that a delta starts from

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def weights_digest(state: Mapping[str, Tensor], dtype: str = "float32", num_threads: int = 1) -> str:
    """Hash of the names, shapes, dtypes and values of all tensors in the wire dtype, 16 hexadecimal digits.

    It is a hash of one SHA-256 for each tensor, so that they can be computed in threads.
    """

    def hash_one(name: str) -> bytes:
        tag = wire_dtype(state[name], dtype)
        return _hash_tensor(name, tuple(state[name].shape), tag, _bits(state[name], tag))

    return _combine(sorted(state), hash_one, num_threads)


def wire_dtype(tensor: Tensor, dtype: str) -> str:
    """The dtype in which a tensor travels under `weights.dtype`: never a wider one than its own."""
    wire = _dtype(dtype)
    is_rounded = tensor.is_floating_point() and tensor.dtype.itemsize > wire.itemsize
    return str(wire if is_rounded else tensor.dtype).removeprefix("torch.")


def index_dtype(num_elements: int) -> type[np.unsignedinteger]:
    """The narrowest dtype that holds every flat index."""
    return np.uint32 if num_elements <= 2**32 else np.uint64


# -- a payload as a description and a list of arrays, for transports that move nothing but arrays ----------------------


def pack(payload: WeightPayload) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A description in JSON's types, and the arrays [n] in the order that `unpack` wants them."""
    rows, arrays = [], []
    for name, tensor in payload.tensors.items():
        index = None if tensor.indices is None else tensor.indices.dtype.name
        rows.append([name, tensor.dtype, list(tensor.shape), tensor.bits.dtype.name, len(tensor.bits), index])
        arrays += [tensor.bits] if tensor.indices is None else [tensor.bits, tensor.indices]
    header = {"kind": payload.kind, "version": list(payload.version), "dtype": payload.dtype, "base": payload.base}
    return {**header, "tensors": rows}, arrays


def array_specs(header: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(dtype, length) of the arrays that belong to a description."""
    specs = []
    for _, _, _, bits, length, index in header["tensors"]:
        specs += [(bits, length)] if index is None else [(bits, length), (index, length)]
    return specs


def unpack(header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> WeightPayload:
    """The payload behind a description and its arrays."""
    rest = iter(arrays)
    tensors = {
        name: WireTensor(dtype, tuple(shape), next(rest), None if index is None else next(rest))
        for name, dtype, shape, _, _, index in header["tensors"]
    }
    return WeightPayload(header["kind"], WeightVersion(*header["version"]), header["dtype"], tensors, header["base"])


# -- tensors and bits --------------------------------------------------------------------------------------------------


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _bits(tensor: Tensor, dtype: str) -> np.ndarray:
    """The bits [n] of a tensor rounded to `dtype`, unsigned; possibly a view of its memory."""
    flat = tensor.detach().to(_dtype(dtype)).cpu().contiguous().view(-1)
    return flat.view(_INTEGERS[flat.element_size()]).numpy().view(f"u{flat.element_size()}")


def _encode(tensor: Tensor, dtype: str) -> WireTensor:
    tag = wire_dtype(tensor, dtype)
    bits = _bits(tensor, tag)
    if tensor.device.type == "cpu" and tag == str(tensor.dtype).removeprefix("torch."):
        bits = bits.copy()  # it may be the memory that the optimizer writes to
    return WireTensor(tag, tuple(tensor.shape), bits)


def _delta(old: WeightPayload, new: WeightPayload) -> WeightPayload:
    """Changed elements only; a tensor of which so much changed that indices would not pay goes whole."""
    tensors = {}
    for name, tensor in new.tensors.items():
        before = old.tensors[name]
        indices = np.flatnonzero(before.bits != tensor.bits).astype(index_dtype(tensor.bits.size))
        if not indices.size:
            continue
        sparse = WireTensor(tensor.dtype, tensor.shape, tensor.bits[indices], indices)
        tensors[name] = sparse if sparse.nbytes < tensor.nbytes else tensor
    return WeightPayload("delta", new.version, new.dtype, tensors, old.version.digest)


def _write(target: Tensor, tensor: WireTensor) -> None:
    values = tensor.values().to(target.device, target.dtype)
    if tensor.indices is None:
        target.copy_(values.view(tensor.shape))
    else:
        target.put_(torch.from_numpy(tensor.indices.astype(np.int64)).to(target.device), values)


def _round(tensor: Tensor, dtype: str) -> None:
    """Round in place as a full payload would have: all replicas hold the same, however they came by it."""
    wire = _dtype(wire_dtype(tensor, dtype))
    if wire != tensor.dtype:
        tensor.copy_(tensor.to(wire))


def _check_tensor(name: str, tensor: WireTensor, target: Tensor, payload: WeightPayload) -> None:
    expected, found = (tuple(target.shape), wire_dtype(target, payload.dtype)), (tensor.shape, tensor.dtype)
    if found != expected:
        raise WeightMismatchError(
            f"tensor {name} arrives as {found} and the policy holds {expected}; are both from the same folder, and is "
            f"weights.dtype={payload.dtype} no wider than the policy's own dtype?"
        )
    count, indices = target.numel(), tensor.indices
    if tensor.bits.ndim != 1 or tensor.bits.dtype != np.dtype(f"u{_dtype(tensor.dtype).itemsize}"):
        raise WeightMismatchError(f"tensor {name}: {tensor.bits.dtype} {tensor.bits.shape} are no {tensor.dtype} bits")
    if len(tensor.bits) != (count if indices is None else len(indices)):
        raise WeightMismatchError(f"tensor {name}: {len(tensor.bits)} values for {count} elements")
    # Ascending: no element is written twice, and only the last index can be too large.
    if indices is not None and len(indices) and (int(indices[-1]) >= count or (indices[1:] <= indices[:-1]).any()):
        raise WeightMismatchError(f"tensor {name}: indices must ascend and be below {count}")


def _hash_tensor(name: str, shape: tuple[int, ...], dtype: str, bits: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{name}\0{shape}\0{dtype}\0".encode())
    digest.update(bits.data)
    return digest.digest()


def _combine(names: list[str], hash_one: Callable[[str], bytes], num_threads: int) -> str:
    with ThreadPoolExecutor(num_threads) as threads:
        return hashlib.sha256(b"".join(threads.map(hash_one, names))).hexdigest()[:16]
