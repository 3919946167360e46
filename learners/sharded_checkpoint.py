"""Checkpoints of a learner in several processes: each rank writes its shards; any number of ranks can read them.

torch.distributed.checkpoint lays the parts out anew. Its safetensors storage is used because its own one pickles.
"""

from __future__ import annotations

import errno
import math
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from learners.sharding import Ranks
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import sha256_of
from wmpo_ray.core.untrusted import check_tensors
from wmpo_ray.runs.checkpoint import new_checkpoint, save_checkpoint

# Errors of torch's reader for a header that is valid but inconsistent.
_BAD_LAYOUT = (AssertionError, AttributeError, LookupError, OSError, TypeError, ValueError, SafetensorError)


def save_parts(root: Path, step: int, tensors: dict[str, Tensor], meta: dict, keep: int, ranks: Ranks) -> None:
    """`wmpo_ray.runs.checkpoint.save_checkpoint` for sharded tensors; called by all ranks.

    `meta` is rank 0's. If one of them finds the disk full, rank 0 raises UserError, the others OSError.
    """
    if ranks.size == 1:
        save_checkpoint(root, step, tensors, meta, keep)
        return
    hashes: dict[str, str] = {}
    with ExitStack() as stack:
        partial = ranks.from_first(lambda: stack.enter_context(new_checkpoint(root, step, meta, keep, hashes)))
        hashes.update(_write(partial, tensors, ranks))
        ranks.from_first(stack.close)


def _write(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, str]:
    """Write this rank's file into a folder; returns the SHA-256 of all ranks' files by name."""
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise _reason(error) from error
    own = {path.name: sha256_of(path) for path in folder.glob(f"shard-{ranks.rank + 1:05d}-*")}
    return {name: sha256 for hashes in ranks.all(own) for name, sha256 in hashes.items()}


def _reason(error: CheckpointException) -> Exception:
    """The cause of a failure on some rank; torch's own exception is not an `Exception`."""
    for cause, _ in error.failures.values():
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return OSError(cause.errno, cause.strerror)
    return RuntimeError(str(error))


def layout(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the meta device, by name. Raises UserError if its files are inconsistent."""
    try:
        found: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name, tensor in found.items():
            held = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
            if held != math.prod(tensor.size):
                raise ValueError(f"{name} is {tuple(tensor.size)} but the files hold {held} elements")
        return {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype, device="meta")
            for name, tensor in found.items()
        }
    except _BAD_LAYOUT as error:
        raise UserError(f"{folder} is damaged: {error}") from error


def read_parts(folder: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Load tensors, or this rank's shards of them, in place; called by all ranks.

    Raises UserError, before anything is filled in, where the checkpoint does not hold just these.
    """
    check_tensors(str(folder), layout(folder), targets)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended
            dcp.load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=ranks.size == 1)
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be read: {_reason(error)}") from error
