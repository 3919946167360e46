"""Keeps imagined trajectories on disk until the update that used them is in a checkpoint, so a restart can reuse them.

One safetensors file for each request, `<root>/update-000003/request-000008.safetensors`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_file, explain_full_disk, remove_directory, sha256_of
from wmpo_ray.core.types import RolloutRequest, Trajectories
from wmpo_ray.core.untrusted import TensorSpec, tensor_specs

# Entry -> its dtypes and number of axes; the part after a dot is the caller's. None: at least the first two axes.
_ENTRIES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "images.": (("U8",), 5),
    "record.": (("I64", "F32"), None),
    "behavior_logprobs": (("F32",), 3),
    "actions": (("F32",), 4),
    "state": (("F32",), 3),
}
_FOLDER = re.compile(r"update-(\d{6,})")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    instructions: list[str]
    version: Annotated[int, Field(ge=0)]
    cameras: Annotated[list[str], Field(min_length=1)]  # the main one first


class SpoolError(RuntimeError):
    """A spooled file is missing or altered; its groups have to be imagined again."""


def spool_path(root: Path, request: RolloutRequest) -> Path:
    first = request.groups[request.kept or 0]
    member = "" if request.part is None else f"-member-{request.part[0]:04d}"
    name = f"request-{first.attempt:06d}{member}" + ("" if request.kept is None else "-alone")
    return root / f"update-{first.update:06d}" / f"{name}.safetensors"


def save_trajectories(path: Path, trajectories: Trajectories) -> str:
    """Write the file atomically; returns its SHA-256. Raises UserError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        **{f"images.{camera}": images for camera, images in trajectories.images.items()},
        **{f"record.{name}": values for name, values in trajectories.record.items()},
        "behavior_logprobs": trajectories.behavior_logprobs,
        "actions": trajectories.actions,
        **({} if trajectories.state is None else {"state": trajectories.state}),
    }
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    facts = {
        "instructions": trajectories.instructions,
        "version": trajectories.version,
        "cameras": list(trajectories.images),
    }
    with explain_full_disk(path), atomic_file(path) as partial:
        # One entry: several are written in any order, and who imagines a request again must write the same file.
        save_file(arrays, partial, metadata={"about": json.dumps(facts)})
        return sha256_of(partial)


def load_trajectories(path: Path, sha256: str) -> Trajectories:
    """Read a file back. Raises SpoolError where it is missing, altered or not written by `save_trajectories`."""
    check_spooled(path, sha256)
    try:
        specs = tensor_specs(path)
        with safe_open(path, "numpy") as file:
            facts = _Facts.model_validate_json((file.metadata() or {}).get("about", ""))
            _check_entries(path, specs, facts)
            arrays = {name: file.get_tensor(name) for name in specs}
    except ValidationError as error:
        raise SpoolError(
            f"{path}: what it says about its trajectories is not valid: {error.errors()[0]['msg']}"
        ) from error
    except (OSError, SafetensorError, UserError) as error:
        raise SpoolError(f"{path}: {error}") from error
    return Trajectories(
        {camera: arrays[f"images.{camera}"] for camera in facts.cameras},
        tuple(facts.instructions),
        {name.removeprefix("record."): values for name, values in arrays.items() if name.startswith("record.")},
        arrays["behavior_logprobs"],
        arrays["actions"],
        facts.version,
        arrays.get("state"),
    )


def _check_entries(path: Path, specs: dict[str, TensorSpec], facts: _Facts) -> None:
    """Check that all arrays are present and have M trajectories of N decisions."""
    for name, spec in specs.items():
        dtypes, num_axes = _ENTRIES.get(re.sub(r"\..*", ".", name), ((), 0))
        if spec.dtype not in dtypes or (len(spec.shape) != num_axes if num_axes else len(spec.shape) < 2):
            raise SpoolError(f"{path}: {name} of {spec.dtype} {spec.shape} does not belong to trajectories")
    cameras = {name.removeprefix("images.") for name in specs if name.startswith("images.")}
    has_record = any(name.startswith("record.") for name in specs)
    if cameras != set(facts.cameras) or not {"behavior_logprobs", "actions"} <= specs.keys() or not has_record:
        raise SpoolError(f"{path} holds {sorted(specs)}: that is not all of the trajectories of {facts.cameras}")
    starts = {spec.shape[:2] for spec in specs.values()}
    if len(starts) != 1 or starts.pop()[0] != len(facts.instructions):
        shapes = {name: spec.shape for name, spec in specs.items()}
        raise SpoolError(
            f"{path}: its arrays do not fit each other and its {len(facts.instructions)} instructions: {shapes}"
        )


def check_spooled(path: Path, sha256: str) -> None:
    """Raises SpoolError if the file is missing or altered."""
    if not path.is_file():
        raise SpoolError(f"{path} is missing")
    if sha256_of(path) != sha256:
        raise SpoolError(f"{path} was altered: its SHA-256 is not the one in the ledger")


def remove_spooled(root: Path, before_update: int) -> None:
    """Delete the trajectories of updates before `before_update`: a checkpoint already contains those updates."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        if (match := _FOLDER.fullmatch(folder.name)) and int(match[1]) < before_update:
            remove_directory(folder)
