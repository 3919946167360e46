"""Files that were changed by somebody else, and how a loader refuses them."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wmpo_ray.core.errors import UserError

BILLION = 10**9


class Code:
    """Makes the file `trace` if it is ever unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def refusal(load: Callable[[], object]) -> str:
    """The error of `load`, which must be one short line."""
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(weights: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply `change` to the dictionary of tensors in a safetensors file."""
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})


def npy(header: str, data: bytes, version: bytes = b"\1\0") -> bytes:
    """One array as numpy stores it, whatever its header claims."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def pack(path: Path, **members: bytes) -> Path:
    """An npz archive of these members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path
