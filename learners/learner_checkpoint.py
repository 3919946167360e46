"""A learner's checkpoints: one after each update, and one inside the update in progress."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from learners.sharded_checkpoint import layout, read_parts, save_parts
from learners.sharding import ALONE, Ranks
from wmpo_ray.config.run import CheckpointConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import remove_directory
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.runs.checkpoint import META, MOMENTS, CheckpointFolder, find_checkpoint
from wmpo_ray.runs.optimizer_state import optimizer_from_tensors, optimizer_to_tensors

IN_UPDATE = "in-update"
# Of the optimizer: what a run may change on the way. The rest is restored with the checkpoint.
OWN_SETTINGS = ("lr", "betas", "weight_decay")

_Number = Annotated[int, Field(ge=0)]
_MOMENT = re.compile(r"optimizer\.optimizer\.state\.(\d+)\.(\w+)")


class _UpdateFacts(BaseModel):
    """The metadata of a checkpoint that a resumed run reads."""

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
    measures: dict[str, float | None]
    steps: list[dict[str, float | None]]
    num_skipped: _Number
    signatures: list[str]
    optimizer: dict[str, Any]


class LearnerCheckpoints:
    """Saves and restores policy, optimizer and metadata; every save is atomic.

    All ranks of a learner save and load together; what one rank saved several can load, and the reverse.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks = ALONE,
    ):
        self.root, self.config, self.policy, self.optimizer, self.ranks = root, config, policy, optimizer, ranks

    def save(self, num_updates: int, facts: dict[str, Any], earlier: dict[int, dict[str, Tensor]]) -> None:
        """The state after `num_updates`; `earlier`: weights of the versions before that replicas may still need."""
        tensors, meta = self._state()
        for version, state in earlier.items():
            tensors |= {f"earlier-{version}.{name}": tensor for name, tensor in state.items()}
        save_parts(self.root, num_updates, tensors, {**facts, "optimizer": meta}, self.config.keep, self.ranks)
        if self.ranks.is_first and (self.root / IN_UPDATE).exists():
            remove_directory(self.root / IN_UPDATE)

    def load(self, problems: list[str]) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]] | None:
        """Load the newest valid checkpoint into policy and optimizer; None if there has never been one.

        Returns what was given to `save`. `problems` is filled on rank 0.
        """
        found = self.ranks.from_first(lambda: find_checkpoint(self.root, problems.append))
        if found is None:
            return None
        _check_facts(found, _UpdateFacts)
        return found.meta, self._restore(found)

    def save_step(self, num_steps: int, facts: dict[str, Any]) -> None:
        """The state after some optimizer steps of an update."""
        tensors, meta = self._state()
        save_parts(self.root / IN_UPDATE, num_steps, tensors, {**facts, "optimizer": meta}, 1, self.ranks)

    def find_step(self, update: int) -> CheckpointFolder | None:
        """The state inside an update that was interrupted, with what was given to `save_step` as its `meta`."""
        found = self.ranks.from_first(self._find_step)
        if found is None or found.meta.get("update") != update or "signatures" not in found.meta:
            return None
        _check_facts(found, _StepFacts)
        return found

    def restore_step(self, found: CheckpointFolder) -> None:
        """Put what `find_step` has found into policy and optimizer."""
        self._restore(found)

    def _find_step(self) -> CheckpointFolder | None:
        try:
            return find_checkpoint(self.root / IN_UPDATE, lambda problem: None)
        except UserError:
            return None  # damaged: the update starts from its beginning

    @property
    def oldest(self) -> int:
        """The earliest update that can be restored."""
        steps = [int(folder.name.removeprefix("step-")) for folder in self.root.glob("step-*[0-9]")]
        # Until there are `keep` checkpoints, the start of the training counts as one.
        return min(steps) if len(steps) >= self.config.keep else 0

    def _state(self) -> tuple[dict[str, Tensor], dict]:
        state, meta = optimizer_to_tensors(self.optimizer)
        tensors = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return tensors | {f"optimizer.{name}": tensor for name, tensor in state.items()}, meta

    def _restore(self, found: CheckpointFolder) -> dict[int, dict[str, Tensor]]:
        """Fill policy and optimizer; returns the weights of earlier versions."""
        weights, held, earlier = self.policy.state_dict(), layout(found.path), {}
        targets = {f"policy.{name}": tensor for name, tensor in weights.items()} | self._moments(found.path, held)
        for version in found.meta.get("earlier", ()):
            names = {name: f"earlier-{version}.{name}" for name in weights}
            if missing := sorted(names.values() - held.keys()):  # before allocating memory for it
                raise UserError(
                    f"{found.path} lacks {missing[0]}; delete the folder to resume from the previous checkpoint"
                )
            earlier[version] = {name: torch.empty_like(tensor) for name, tensor in weights.items()}
            targets |= {names[name]: tensor for name, tensor in earlier[version].items()}
        read_parts(found.path, targets, self.ranks)
        own = [{name: group[name] for name in OWN_SETTINGS} for group in self.optimizer.param_groups]
        try:
            optimizer_from_tensors(self.optimizer, with_prefix(targets, "optimizer."), found.meta["optimizer"])
        except ValueError as error:
            raise UserError(f"{found.path}: {error}; use the config that it was made with") from error
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        return earlier

    def _moments(self, path: Path, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """Allocate the optimizer's state: moments shaped like their parameters, scalars for the rest."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        room = {}
        for name, saved in held.items():
            if not name.startswith("optimizer."):
                continue
            match = _MOMENT.fullmatch(name)
            is_moment = match and match[2] in MOMENTS and int(match[1]) < len(parameters)
            like = parameters[int(match[1])].detach() if match and is_moment else torch.empty(())
            if saved.shape != like.shape:
                raise UserError(
                    f"{path}: {name} is {tuple(saved.shape)}, in this run {tuple(like.shape)}; use the config that "
                    "it was made with"
                )
            room[name] = torch.zeros_like(like, dtype=saved.dtype)
        return room


def _check_facts(checkpoint: CheckpointFolder, kind: type[BaseModel]) -> None:
    try:
        kind.model_validate(checkpoint.meta)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{checkpoint.path / META} is not a checkpoint of this program: {key}: {first['msg']}; "
            "delete the folder to go on from the checkpoint before it"
        ) from error


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, which is removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
