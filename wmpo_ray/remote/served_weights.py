"""Which weights a server acts with: those of a run, as it goes on, or of a folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import sha256_of_folder
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.untrusted import all_finite
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.best_policy import candidate_path
from wmpo_ray.runs.checkpoint import MANIFEST, find_checkpoint
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.round_folders import label_of, round_folder

LATEST = "latest"


class Weights(NamedTuple):
    """A policy's folder; or a checkpoint of a learner, with the folder of the policy whose weights it replaces."""

    path: Path
    num_updates: int
    base: Path | None = None
    is_final: bool = False  # the policy that a run ended with

    @property
    def state(self) -> tuple[str, int, int]:
        """What changes if other weights are written there."""
        facts = (self.path / MANIFEST if self.base else self.path).stat()
        return (str(self.path), facts.st_mtime_ns, facts.st_ino)


def find_weights(run: Path, which: str = LATEST) -> Weights:
    """The newest weights of a run, or those after `which` updates. Raises UserError where there are none.

    Newest are the policy of the last round that has ended, then the last checkpoint of the one that goes on.
    """
    folder = RunFolder(run)
    for round in range(folder.config.recipe.rounds, 0, -1):
        place = round_folder(run, round)
        base = place / "models" / "base-policy" if round == 1 else round_folder(run, round - 1) / "models" / "policy"
        if which != LATEST:
            if (found := _numbered(place, base, which)) is not None:
                return found
            continue
        final = place / "models" / "policy"
        if folder.is_done(label_of("optimize", round)) and final.is_dir():
            return Weights(final, folder.config.training.num_updates, is_final=True)
        if base.is_dir() and (checkpoint := find_checkpoint(place / "checkpoints", lambda problem: None)):
            return Weights(checkpoint.path, checkpoint.step, base)
        if base.is_dir():
            return Weights(base, 0)
    wanted = "no policy yet; run its stages first" if which == LATEST else f"no checkpoint of update {which}"
    raise UserError(f"{run} has {wanted}")


def _numbered(place: Path, base: Path, which: str) -> Weights | None:
    if not which.isdigit():
        raise UserError(f"--checkpoint {which}: it must be latest, or a number of updates")
    number = int(which)
    checkpoint, candidate = place / "checkpoints" / f"step-{number:06d}", candidate_path(place / "checkpoints", number)
    if checkpoint.is_dir() and base.is_dir():
        return Weights(checkpoint, number, base)
    if candidate.is_dir():
        return Weights(candidate, number)
    return Weights(base, 0) if number == 0 and base.is_dir() else None


def load_weights(config: Config, weights: Weights) -> tuple[Policy, str]:
    """(policy for acting, digest of its weights). Raises UserError for weights that are damaged or of another policy."""
    policy = load_policy(config, str(weights.base or weights.path))
    if weights.base is None:
        digest = sha256_of_folder(weights.path)
    else:
        _fill(policy, weights.path)
        manifest = json.loads((weights.path / MANIFEST).read_bytes())
        digest = min(entry["sha256"] for entry in manifest["files"].values())
    policy.eval()
    return policy, digest[:16]


def _fill(policy: Any, folder: Path) -> None:
    """Put the weights of a learner's checkpoint, whole or sharded, into a policy."""
    targets = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended
            dcp.load(targets, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (dcp.CheckpointException, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} holds no weights of this policy: {reason}") from error
    if not all(all_finite(tensor) for tensor in targets.values() if isinstance(tensor, torch.Tensor)):
        raise UserError(f"{folder} holds weights that are not finite; the training that wrote it went wrong")
