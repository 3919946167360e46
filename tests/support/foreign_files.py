"""Episodes in the formats of others, as their programs write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np


def write_hdf5(path: Path, num: int = 3, steps: int = 5, **changes: Any) -> Path:
    """A file in robomimic's layout without `next_obs`; of `changes`, None leaves a part of every demonstration out."""
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = num * steps
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Square_D0", "type": 1, "env_kwargs": {"reward_shaping": False}}
        )
        for i in range(num):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
            parts = {
                "actions": random.uniform(-1, 1, (steps, 7)),
                "obs/agentview_image": random.integers(0, 256, (steps, 8, 6, 3), np.uint8),
                "obs/robot0_eef_pos": np.zeros((steps, 3)),
                "states": np.zeros((steps, 45)),
                "rewards": np.eye(steps)[-1],
                "dones": np.eye(steps)[-1].astype(np.int64),
            }
            for name, value in (parts | changes).items():
                if value is not None:
                    demo[name] = value
    return path


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def rollout(
    seed: int = 0, steps: int = 5, complete: bool = True, finish: int = 4, **changes: bytes
) -> dict[str, bytes]:
    """The members of one rollout of the reference implementation."""
    random = np.random.default_rng(seed)
    meta = {"complete": complete, "finish_step": finish, "unique_id": f"square_{seed}"}
    members = {
        "video.npy": npy_bytes(random.integers(0, 256, (steps + 1, 8, 6, 3), np.uint8)),
        "action.npy": npy_bytes(random.uniform(-1, 1, (steps, 7)).astype(np.float32)),
        "meta.json": json.dumps(meta).encode(),
    }
    return members | {name.replace("_", "."): content for name, content in changes.items()}


def write_tar(path: Path, rollouts: dict[str, dict[str, bytes]]) -> Path:
    """An archive with the times that WebDataset writes, which need headers of their own."""
    with tarfile.open(path, "w") as archive:
        for name, members in rollouts.items():
            for what, content in members.items():
                member = tarfile.TarInfo(f"{name}.{what}")
                member.size, member.mtime = len(content), 1700000000.25
                archive.addfile(member, io.BytesIO(content))
    return path
