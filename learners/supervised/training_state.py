"""Checkpoints inside a training: a killed training resumes from the last one and ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import check_tensors
from wmpo_ray.runs.checkpoint import load_checkpoint, save_checkpoint
from wmpo_ray.runs.optimizer_state import optimizer_from_tensors, optimizer_to_tensors

Part = nn.Module | torch.optim.Optimizer | torch.Generator | Sequence[Tensor] | Mapping[str, Tensor]
Parts = Mapping[str, Part]  # by names without a dot
Numbers = dict[str, Any]  # int, float or a list of one of them

NUMBERS = "numbers"


@dataclass(frozen=True)
class TrainingCheckpoints:
    """Where and how often a training saves its state; never without a folder.

    The parts and the numbers together must be all that the next step depends on besides config and data. `report` is
    told what is wrong with damaged checkpoints, and where the training goes on.
    """

    folder: Path | None = None
    every_steps: int = 0  # 0: never
    keep: int = 2
    report: Callable[[str], None] = lambda message: None

    def save(self, step: int, parts: Parts, numbers: Numbers) -> None:
        """Save if a checkpoint is due after `step` steps. Raises `UserError` on a full disk."""
        if self.folder is None or not self.every_steps or step % self.every_steps:
            return
        tensors, meta = _pack(parts)
        # Saved as tensors, since JSON cannot represent a NaN loss.
        tensors |= {f"{NUMBERS}.{name}": torch.from_numpy(np.asarray(value)) for name, value in numbers.items()}
        save_checkpoint(self.folder, step, tensors, meta, self.keep)

    def restore(self, parts: Parts) -> tuple[int, Numbers] | None:
        """Load the newest valid checkpoint into the parts, in place; returns its step and numbers.

        None, and the parts untouched, where there is none: the training then starts anew and only time is lost.
        Raises `UserError` for one that is whole and does not fit the parts.
        """
        if self.folder is None:
            return None
        try:
            checkpoint = load_checkpoint(self.folder, self.report)
        except UserError:
            self.report(f"{self.folder}: no checkpoint is intact; starting from step 0")
            return None
        if checkpoint is None:
            return None
        _check(str(checkpoint.path), parts, checkpoint.tensors, checkpoint.meta)
        try:
            _unpack(parts, checkpoint.tensors, checkpoint.meta)
        except ValueError as error:
            raise UserError(f"{checkpoint.path}: {error}; delete {self.folder} to start the stage over") from error
        self.report(f"{checkpoint.path}: resuming from step {checkpoint.step}")
        numbers = _under(NUMBERS, checkpoint.tensors)
        return checkpoint.step, {name: value.numpy().tolist() for name, value in numbers.items()}


NO_CHECKPOINTS = TrainingCheckpoints()


def _pack(parts: Parts) -> tuple[dict[str, Tensor], dict]:
    """State of all parts as tensors named `part.key`, and other values by the part's name."""
    tensors: dict[str, Tensor] = {}
    meta: dict[str, dict] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            state, meta[name] = optimizer_to_tensors(part)
        elif isinstance(part, nn.Module):
            state = part.state_dict()
        elif isinstance(part, torch.Generator):
            state = {"state": part.get_state()}
        elif isinstance(part, Mapping):
            state = dict(part)
        else:
            state = {str(i): tensor for i, tensor in enumerate(part)}
        tensors |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    return tensors, meta


def _check(where: str, parts: Parts, tensors: dict[str, Tensor], meta: dict) -> None:
    """Check shapes before loading: copying would broadcast a tensor of another shape, or stop halfway."""
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            if not isinstance(meta.get(name), dict):
                raise UserError(f"{where} holds no state of {name}; delete the folder to start the stage over")
        else:
            state, _ = _pack({name: part})
            check_tensors(f"{where}, {name}", _under(name, tensors), _under(name, state))


@torch.no_grad()
def _unpack(parts: Parts, tensors: dict[str, Tensor], meta: dict) -> None:
    for name, part in parts.items():
        state = _under(name, tensors)
        if isinstance(part, torch.optim.Optimizer):
            optimizer_from_tensors(part, state, meta[name])
        elif isinstance(part, nn.Module):
            part.load_state_dict(state)
        elif isinstance(part, torch.Generator):
            part.set_state(state["state"])
        elif isinstance(part, Mapping):
            for key, tensor in part.items():
                tensor.copy_(state[key])
        else:
            for i, tensor in enumerate(part):
                tensor.copy_(state[str(i)])


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
