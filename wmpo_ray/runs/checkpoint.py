"""Checkpoints: `<root>/step-000012/{tensors.safetensors, meta.json, manifest.json}` and `<root>/latest`.

Several processes that hold parts of the tensors write a file each instead, with the names that
torch.distributed.checkpoint gives them. A checkpoint appears under its name complete or not at all. The manifest holds size and SHA-256 of the other files, so
that a damaged one is noticed, named and passed over. Nothing is pickled.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory, atomic_write, remove_directory, remove_leftovers, sha256_of, write_all
from wmpo_ray.core.untrusted import MAX_JSON_BYTES, read_json

TENSORS, META, MANIFEST, LATEST = "tensors.safetensors", "meta.json", "manifest.json", "latest"
FORMAT = 1
MAX_MANIFEST_BYTES = 65536
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of an optimizer, shaped like the parameter

_STEP_FOLDER = re.compile(r"step-(\d{6,})")
_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class CheckpointFolder:
    """A valid checkpoint whose tensors have not been read."""

    step: int
    meta: dict
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """The content given to `save_checkpoint`, and its folder."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict
    path: Path


Found = TypeVar("Found")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    step: int
    files: dict[str, _Entry]


class _Damaged(Exception):
    """This checkpoint cannot be used; the message names the file and what is wrong with it."""


def save_checkpoint(root: Path, step: int, tensors: dict[str, Tensor], meta: dict, keep: int) -> Path:
    """Write the checkpoint of `step`, then delete the oldest ones beyond `keep`; returns its folder.

    Checkpoints of later steps are deleted too: they belong to a course that this run has gone back on. `meta` holds
    JSON's types only (`ValueError`/`TypeError` otherwise). Raises `UserError` on a full disk; what was there stays.
    """
    with new_checkpoint(root, step, meta, keep, {}) as partial:
        _save_tensors(partial / TENSORS, tensors)
    return root / f"step-{step:06d}"


@contextmanager
def new_checkpoint(root: Path, step: int, meta: dict, keep: int, hashes: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder to put files of tensors in; it becomes the checkpoint of `step` as `save_checkpoint` would make it.

    Args:
        hashes: SHA-256 of those files, by name, as far as they are known when the block ends
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least 1 checkpoint must stay; set checkpoint.keep")
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    folder = root / f"step-{step:06d}"
    with atomic_directory(folder) as partial:
        yield partial
        names = [path.name for path in partial.iterdir()]
        _write_json(partial / META, meta)
        _write_json(partial / MANIFEST, _manifest_of(partial, step, [*names, META], hashes))
    for other_step, other in _step_folders(root):
        if other_step > step:
            remove_directory(other)
    atomic_write(root / LATEST, folder.name)
    for _, old in _step_folders(root)[keep:]:
        remove_directory(old)


def load_checkpoint(root: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint, tensors on the CPU; None if there has never been one.

    Each file that is missing, truncated or altered is named through `report`, one line each, and the checkpoint before
    is tried. Raises `UserError` if there are checkpoints but none is whole.
    """
    return _newest(root, report, _load)


def find_checkpoint(root: Path, report: Callable[[str], None]) -> CheckpointFolder | None:
    """The same, without reading the tensors."""
    return _newest(root, report, _inspect)


def _newest(root: Path, report: Callable[[str], None], read: Callable[[Path, int], Found]) -> Found | None:
    problems = _problems_of_latest(root)
    for problem in problems:
        report(problem)
    for step, folder in _step_folders(root):
        try:
            return read(folder, step)
        except _Damaged as error:
            problems.append(str(error))
            report(f"{error}; trying the checkpoint before it")
    if problems:
        raise UserError(f"no usable checkpoint in {root}: " + "; ".join(problems) + "; delete the folder to start anew")
    return None


def _step_folders(root: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    if not root.is_dir():
        return []
    found = [(int(match[1]), entry) for entry in root.iterdir() if (match := _STEP_FOLDER.fullmatch(entry.name))]
    return sorted(found, reverse=True)


def _problems_of_latest(root: Path) -> list[str]:
    steps = _step_folders(root)
    latest = root / LATEST
    if not latest.exists():
        return [f"{latest} is missing"] if steps else []
    with open(latest, "rb") as file:
        name = file.read(64).decode(errors="replace")
    if not _STEP_FOLDER.fullmatch(name):
        return [f"{latest} holds {name!r} instead of the name of a checkpoint"]
    # A checkpoint newer than `latest` is valid: the run was killed between the two renames.
    return [] if (root / name).is_dir() else [f"{root / name}, the latest checkpoint, is missing"]


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    separate, storages = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        # Tied weights: safetensors refuses tensors that share memory.
        separate[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    try:
        save_file(separate, path)
    except SafetensorError as error:
        # The library only keeps the errno in the message.
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _write_json(path: Path, content: dict) -> None:
    with open(path, "wb", buffering=0) as file:
        write_all(file.fileno(), json.dumps(content, allow_nan=False, separators=(",", ":")).encode())


def _manifest_of(folder: Path, step: int, names: list[str], hashes: Mapping[str, str]) -> dict:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hashes.get(name) or sha256_of(folder / name)}
        for name in names
    }
    return {"format": FORMAT, "step": step, "files": files}


def _load(folder: Path, step: int) -> Checkpoint:
    found = _inspect(folder, step)
    path = folder / TENSORS
    try:
        # The library compares the header with the file's size before it allocates anything.
        return Checkpoint(step, load_file(path), found.meta, folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise _Damaged(f"{path} is damaged: {error}") from error


def _inspect(folder: Path, step: int) -> CheckpointFolder:
    path = folder / MANIFEST
    try:
        files = _read_manifest(path, step).files
        for name, entry in files.items():
            path = folder / name
            _check_file(path, entry)
        path = folder / META
        meta = read_json(path, MAX_JSON_BYTES)
    except FileNotFoundError as error:
        raise _Damaged(f"{path} is missing") from error
    except OSError as error:
        raise _Damaged(f"{path} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise _Damaged(str(error)) from error
    if not isinstance(meta, dict):
        raise _Damaged(f"{path} does not hold a JSON object")
    return CheckpointFolder(step, meta, folder)


def _read_manifest(path: Path, step: int) -> _Manifest:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _Damaged(f"{path} has {path.stat().st_size} bytes, more than any manifest ({MAX_MANIFEST_BYTES})")
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _Damaged(f"{path} is damaged: {error.errors()[0]['msg']}") from error
    if manifest.format != FORMAT:
        raise _Damaged(f"{path} has format {manifest.format}; this version reads format {FORMAT}")
    if manifest.step != step:
        raise _Damaged(f"{path} belongs to step {manifest.step}, not {step}")
    others = manifest.files.keys() - {META}
    if META not in manifest.files or not (others == {TENSORS} or (others and all(map(_SHARD.fullmatch, others)))):
        raise _Damaged(f"{path} lists the files {sorted(manifest.files)} instead of {sorted((TENSORS, META))}")
    return manifest


def _check_file(path: Path, entry: _Entry) -> None:
    if not path.is_file() and path.exists():
        raise _Damaged(f"{path} is no regular file")
    size = path.stat().st_size
    if size != entry.bytes:
        raise _Damaged(f"{path} has {size} bytes instead of the {entry.bytes} that were written")
    if sha256_of(path) != entry.sha256:
        raise _Damaged(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}")
