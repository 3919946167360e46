"""The receipt of a run: hashes of all that its result was made with and of what it left, to compare them later.

It finds damage, mixed-up files and edited numbers. It is no signature: whoever can write to the folder can write another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmpo_ray.config.dumping import config_hash
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, is_leftover, json_clean, sha256_of, sha256_of_folder
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import read_bytes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.machine import package_versions, processor_name

RECEIPT = "receipt.json"
MAX_BYTES = 64 * 2**20
HASHED = ("models", "outcomes", "trajectories")  # folders of a run, and of each of its rounds
PROGRAM = ("wmpo_ray", "actors", "learners", "cluster")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HashedFile(_Strict):
    sha256: str
    num_bytes: int = Field(ge=0)


class Processor(_Strict):
    """What the order and the rounding of sums depend on."""

    name: str
    vector_instructions: str  # that torch uses, such as "AVX2"
    gpus: list[str]


class Receipt(_Strict):
    format: Literal[1] = 1
    program: str  # hash of the source files that ended the run
    versions: dict[str, str]
    processor: Processor
    config_hash: str
    stages: dict[str, str]  # hash of the metrics of each finished stage
    result: dict[str, Any]
    inputs: dict[str, str]  # setting -> hash of the file or folder that it names
    files: dict[str, HashedFile]  # by path in the folder


def make_receipt(folder: RunFolder, inputs: Mapping[str, Path]) -> Receipt:
    """The receipt that the folder and this process would have now. inputs: setting -> file or folder that it names."""
    summary = folder.summary
    return Receipt(
        program=program_hash(),
        versions=package_versions(),
        processor=this_processor(),
        config_hash=config_hash(folder.config),
        stages={label: hash_of(folder.metrics(label)) for label in summary.get("stages", {})},
        result=summary.get("result", {}),
        inputs={setting: hash_of_path(path) for setting, path in inputs.items()},
        files={
            path.relative_to(folder.path).as_posix(): HashedFile(sha256=sha256_of(path), num_bytes=path.stat().st_size)
            for path in hashed_files(folder.path)
        },
    )


def write_receipt(folder: RunFolder, inputs: Mapping[str, Path]) -> None:
    text = json.dumps(make_receipt(folder, inputs).model_dump(), indent=1, sort_keys=True)
    atomic_write(folder.path / RECEIPT, text + "\n")


def read_receipt(run: Path) -> Receipt:
    """Raises `UserError` where there is none or it is damaged."""
    path = run / RECEIPT
    if not path.is_file():
        raise UserError(f"{run} has no {RECEIPT}: it is written when a run ends; `wmpo run ... --resume` writes it")
    try:
        return Receipt.model_validate_json(read_bytes(path, MAX_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"]
        raise UserError(f"{path} is damaged: {key} = {shown(first['input'])}: {message}") from None


def hashed_files(run: Path) -> Iterator[Path]:
    """The files of a run whose hashes its receipt holds, in order."""
    roots = [run, *sorted(path for path in (run / "rounds").glob("*") if path.is_dir())]
    for folder in (root / name for root in roots for name in HASHED):
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and not is_leftover(path.name))


def hash_of(content: Any) -> str:
    """16 hex digits that are equal for equal JSON, whatever the order of its keys."""
    text = json.dumps(json_clean(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of_path(path: Path) -> str:
    return sha256_of_folder(path) if path.is_dir() else sha256_of(path)


def program_hash() -> str:
    """16 hex digits of the source files of this program, wherever they are installed."""
    root = Path(__file__).parents[2]
    files = sorted(path for name in PROGRAM for path in (root / name).rglob("*.py"))
    lines = [f"{sha256_of(path)}  {path.relative_to(root).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def this_processor() -> Processor:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Processor(
        name=processor_name(), vector_instructions=torch.backends.cpu.get_cpu_capability(), gpus=sorted(gpus)
    )
