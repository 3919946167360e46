"""What a GRPO learner keeps on the disk: a checkpoint for each update, and one inside the update under way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from wmpo_ray.batching import Batch
from wmpo_ray.checkpoint import (
    META,
    Checkpoint,
    load_checkpoint,
    optimizer_from_tensors,
    optimizer_to_tensors,
    save_checkpoint,
)
from wmpo_ray.config import CheckpointConfig
from wmpo_ray.errors import UserError
from wmpo_ray.files import remove_directory
from wmpo_ray.interfaces import Policy
from wmpo_ray.untrusted import check_tensors

IN_UPDATE = "in-update"

_Number = Annotated[int, Field(ge=0)]


class _UpdateFacts(BaseModel):
    """What a run goes on from, as far as it is read again."""

    model_config = ConfigDict(strict=True)
    num_updates: _Number
    num_skipped: _Number
    metrics: list[dict[str, Any]]
    digests: dict[str, str]
    groups: list[Annotated[list[_Number], Field(min_length=2, max_length=2)]]
    earlier: list[_Number]
    optimizer: dict[str, Any]


class _StepFacts(BaseModel):
    model_config = ConfigDict(strict=True)
    parts: list[dict[str, float | None]]
    num_skipped: _Number
    optimizer: dict[str, Any]


class GrpoCheckpoints:
    """Policy and optimizer with the facts around them; every save is whole or not there."""

    def __init__(self, root: Path, config: CheckpointConfig, policy: Policy, optimizer: torch.optim.Optimizer):
        self.root, self.config, self.policy, self.optimizer = root, config, policy, optimizer

    def save(self, num_updates: int, facts: dict[str, Any], earlier: dict[int, dict[str, Tensor]]) -> None:
        """The state after `num_updates`; `earlier`: weights of the versions before that replicas may still need."""
        tensors, meta = self._state()
        for version, state in earlier.items():
            tensors |= {f"earlier-{version}.{name}": tensor for name, tensor in state.items()}
        save_checkpoint(self.root, num_updates, tensors, {**facts, "optimizer": meta}, self.config.keep)
        if (self.root / IN_UPDATE).exists():
            remove_directory(self.root / IN_UPDATE)

    def load(self, problems: list[str]) -> Checkpoint | None:
        """Put the newest whole checkpoint into policy and optimizer; None if there has never been one."""
        checkpoint = load_checkpoint(self.root, problems.append)
        if checkpoint is not None:
            _check_facts(checkpoint, _UpdateFacts)
            self._restore(checkpoint)
        return checkpoint

    def save_step(self, num_steps: int, facts: dict[str, Any]) -> None:
        """The state after some optimizer steps of an update."""
        tensors, meta = self._state()
        save_checkpoint(self.root / IN_UPDATE, num_steps, tensors, {**facts, "optimizer": meta}, keep=1)

    def load_step(self, update: int, signature: str) -> dict[str, Any] | None:
        """Go on inside an update, if it was interrupted on the same batch: the facts of its last step."""
        try:
            checkpoint = load_checkpoint(self.root / IN_UPDATE, lambda problem: None)
        except UserError:
            return None  # damaged: the update starts from its beginning
        if checkpoint is None or [checkpoint.meta.get(key) for key in ("update", "signature")] != [update, signature]:
            return None
        _check_facts(checkpoint, _StepFacts)
        self._restore(checkpoint)
        return checkpoint.meta

    @property
    def oldest(self) -> int:
        """The earliest update that can be gone back to."""
        steps = [int(folder.name.removeprefix("step-")) for folder in self.root.glob("step-*[0-9]")]
        # The first checkpoints do not exist yet: until there are `keep`, the beginning is one of them.
        return min(steps) if len(steps) >= self.config.keep else 0

    def _state(self) -> tuple[dict[str, Tensor], dict]:
        state, meta = optimizer_to_tensors(self.optimizer)
        tensors = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return tensors | {f"optimizer.{name}": tensor for name, tensor in state.items()}, meta

    def _restore(self, checkpoint: Checkpoint) -> None:
        weights = with_prefix(checkpoint.tensors, "policy.")
        check_tensors(f"{checkpoint.path}, policy", weights, self.policy.state_dict())
        for version in checkpoint.meta.get("earlier", ()):
            earlier = with_prefix(checkpoint.tensors, f"earlier-{version}.")
            check_tensors(f"{checkpoint.path}, earlier weights {version}", earlier, self.policy.state_dict())
        self.policy.load_state_dict(weights)
        try:
            optimizer_from_tensors(
                self.optimizer, with_prefix(checkpoint.tensors, "optimizer."), checkpoint.meta["optimizer"]
            )
        except ValueError as error:
            raise UserError(f"{checkpoint.path}: {error}; use the config that it was made with") from error


def _check_facts(checkpoint: Checkpoint, kind: type[BaseModel]) -> None:
    try:
        kind.model_validate(checkpoint.meta)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{checkpoint.path / META} is no checkpoint of this program: {key}: {first['msg']}; "
            "delete the folder to go on from the checkpoint before it"
        ) from error


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def batch_signature(batch: Batch) -> str:
    """Hash of what a batch teaches: an interrupted update goes on only with the very same one."""
    digest = hashlib.sha256(np.ascontiguousarray(batch.frames).tobytes())
    for tensor in (batch.tokens, batch.behavior_logprobs, batch.advantage, batch.mask):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
