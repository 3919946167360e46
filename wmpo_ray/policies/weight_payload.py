"""Policy weights on their way from the learner to the replicas: what is sent, and the check that it arrived.

The weights travel in the *wire dtype*: a floating tensor that is wider than `weights.dtype` is rounded to it, all others
go as they are. A digest is a hash of every tensor in the wire dtype, so a learner in float32 and a replica in bfloat16
agree on it. Values travel as their bits, in unsigned integers: a NaN, a negative zero and bfloat16 arrive unchanged. A
tensor of a delta travels as the changes of its bits (`weight_changes.py`), or whole where that is no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_changes import decode_changes, encode_changes

Kind = Literal["full", "adapter", "delta"]

FORMAT = 2  # of a description; 1 had indices beside the values

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
    """One tensor, or what changed in it."""

    dtype: str  # of the values on the wire, such as "bfloat16"
    shape: tuple[int, ...]  # of the tensor
    bits: np.ndarray  # [n] unsigned, in C order; with `is_changes` the code [bytes] uint8 of the changes
    is_changes: bool = False

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes


class Changed(NamedTuple):
    """The elements of a tensor that a delta changes."""

    indices: np.ndarray  # [n] flat, ascending
    bits: np.ndarray  # [n] unsigned, of the new values


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


# -- a payload as a description and a list of arrays, for transports that move nothing but arrays ----------------------


def pack(payload: WeightPayload) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A description in JSON's types, and the arrays [n] in the order that `unpack` wants them."""
    rows = [
        [name, tensor.dtype, list(tensor.shape), tensor.bits.dtype.name, len(tensor.bits), tensor.is_changes]
        for name, tensor in payload.tensors.items()
    ]
    header = {"kind": payload.kind, "version": list(payload.version), "dtype": payload.dtype, "base": payload.base}
    return {"format": FORMAT, **header, "tensors": rows}, [tensor.bits for tensor in payload.tensors.values()]


def array_specs(header: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(dtype, length) of the arrays that belong to a description. Raises WeightMismatchError for another format."""
    if header.get("format") != FORMAT:
        raise WeightMismatchError(f"weights arrive in format {header.get('format')} and this program reads {FORMAT}")
    return [(bits, length) for _, _, _, bits, length, _ in header["tensors"]]


def unpack(header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> WeightPayload:
    """The payload behind a description and its arrays."""
    tensors = {
        name: WireTensor(dtype, tuple(shape), array, is_changes)
        for (name, dtype, shape, _, _, is_changes), array in zip(header["tensors"], arrays, strict=True)
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


def _delta(old: WeightPayload, new: WeightPayload, num_threads: int = 1) -> WeightPayload:
    """Tensors that changed, each as its changes, or whole where so much changed that this is no more."""

    def changed(name: str) -> WireTensor | None:
        before, after = old.tensors[name].bits, new.tensors[name]
        if np.array_equal(before, after.bits):
            return None
        compact = replace(after, bits=encode_changes(before, after.bits), is_changes=True)
        return compact if compact.nbytes < after.nbytes else after

    with ThreadPoolExecutor(num_threads) as threads:
        pairs = zip(new.tensors, threads.map(changed, new.tensors), strict=True)
        tensors = {name: tensor for name, tensor in pairs if tensor is not None}
    return WeightPayload("delta", new.version, new.dtype, tensors, old.version.digest)


def _write(target: Tensor, tensor: WireTensor, changed: Changed | None) -> None:
    """`changed` is what `_check_tensor` made of `tensor`."""
    if changed is None:
        # Copied: the bits may be a read-only view into shared memory.
        target.copy_(values_of(tensor.bits.copy(), tensor.dtype).to(target.device, target.dtype).view(tensor.shape))
    else:
        places = torch.from_numpy(changed.indices.astype(np.int64)).to(target.device)
        flat = target.reshape(-1)  # a view, or a copy where the target does not lie in one piece
        # The places are distinct. (`put_` raises where torch is asked for deterministic algorithms only.)
        flat.index_copy_(0, places, values_of(changed.bits, tensor.dtype).to(target.device, target.dtype))
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))


def values_of(bits: np.ndarray, dtype: str) -> Tensor:
    """The values [n] behind bits, on the CPU, in the memory of the bits."""
    return torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(_dtype(dtype))


def _round(tensor: Tensor, dtype: str) -> None:
    """Round in place as a full payload would have: all replicas hold the same, however they came by it."""
    wire = _dtype(wire_dtype(tensor, dtype))
    if wire != tensor.dtype:
        tensor.copy_(tensor.to(wire))


def _check_tensor(name: str, tensor: WireTensor, target: Tensor, payload: WeightPayload) -> Changed | None:
    """Raises WeightMismatchError where a tensor does not fit; returns its new values, None for one that comes whole.

    A tensor with two names gets its changes twice, so all values are made before any is written.
    """
    expected, found = (tuple(target.shape), wire_dtype(target, payload.dtype)), (tensor.shape, tensor.dtype)
    if found != expected:
        raise WeightMismatchError(
            f"tensor {name} arrives as {found} and the policy holds {expected}; are both from the same folder, and is "
            f"weights.dtype={payload.dtype} no wider than the policy's own dtype?"
        )
    count, itemsize = target.numel(), _dtype(tensor.dtype).itemsize
    if tensor.is_changes:
        if payload.kind != "delta":
            raise WeightMismatchError(
                f"tensor {name}: a {payload.kind} payload has whole tensors, and it brings changes"
            )
        try:
            indices, steps = decode_changes(tensor.bits, count, itemsize)
        except ValueError as error:
            raise WeightMismatchError(f"tensor {name}: {error}") from error
        held = torch.take(target, torch.from_numpy(indices.astype(np.int64)).to(target.device))
        return Changed(indices, _bits(held, tensor.dtype) + steps)
    if tensor.bits.ndim != 1 or tensor.bits.dtype != np.dtype(f"u{itemsize}"):
        raise WeightMismatchError(f"tensor {name}: {tensor.bits.dtype} {tensor.bits.shape} are no {tensor.dtype} bits")
    if len(tensor.bits) != count:
        raise WeightMismatchError(f"tensor {name}: {len(tensor.bits)} values for {count} elements")
    return None


def _hash_tensor(name: str, shape: tuple[int, ...], dtype: str, bits: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{name}\0{shape}\0{dtype}\0".encode())
    digest.update(bits.data)
    return digest.digest()


def _combine(names: list[str], hash_one: Callable[[str], bytes], num_threads: int) -> str:
    with ThreadPoolExecutor(num_threads) as threads:
        return hashlib.sha256(b"".join(threads.map(hash_one, names))).hexdigest()[:16]
