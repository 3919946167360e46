"""What a folder or a file of weights is, and whether it can be loaded: names, shapes, sizes, values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.model_files.weight_files import Fit, WeightFiles, compare, find_weights, published_as_is, read_tensors
from wmpo_ray.policies.openvla.contents import companion_facts, policy_config
from wmpo_ray.policies.openvla.published_files import is_stored_frequency, weight_shards
from wmpo_ray.reward_models.published_videomae import published_config, published_names
from wmpo_ray.world_models.published_stdit import published_sizes
from wmpo_ray.world_models.stdit import STDiT, is_dead

# A kind of model is known by a tensor that no other kind has.
KINDS = {
    "x_embedder.proj.weight": "world model (STDiT)",
    "encoder.conv_in.weight": "autoencoder (AutoencoderKL)",
    "videomae.embeddings.patch_embeddings.projection.weight": "reward model (VideoMAE classifier)",
    "language_model.model.embed_tokens.weight": "policy (OpenVLA)",
    "decoder.layers.0.weight": "tiny autoencoder (AutoencoderTiny)",
}
WORLD_MODEL, AUTOENCODER, REWARD_MODEL, POLICY = list(KINDS.values())[:4]
ADAPTER, ADAPTER_PREFIX = "adapter (merge it into its model first)", "base_model.model."
# Folders that `wmpo run` writes say what they are.
OUR_SETTINGS = {"world_model.json": "world model of wmpo", "reward_model.json": "reward model of wmpo"}

Names = Callable[[str], tuple[str, ...]]
Build = Callable[[], nn.Module]


@dataclass
class Inspection:
    """What was found at `path`. `missing`, `foreign` and `not_finite` are names of tensors, `wrong` lines.

    `companions` are the facts that the small files beside the weights tell, `problems` what is wrong with those.
    """

    path: Path
    kind: str
    files: WeightFiles
    compared: bool  # whether there is a network here to compare the names with
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)  # present, and without effect on any result
    not_finite: list[str] = field(default_factory=list)
    num_fitting: int = 0
    companions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def loadable(self) -> bool:
        return not (self.missing or self.foreign or self.wrong or self.not_finite or self.problems)

    def facts(self) -> dict[str, str]:
        """Lines for a table."""
        dtypes = Counter(spec.dtype for spec in self.files.specs.values())
        fitting = f"{self.num_fitting}, missing {len(self.missing)}, foreign {len(self.foreign)}"
        return {
            "what": self.kind,
            "layout": self.files.layout,
            "tensors": str(len(self.files.specs)),
            "parameters": f"{self.files.num_parameters:,}",
            "bytes": f"{self.files.num_bytes:,}",
            "dtype": ", ".join(f"{name} ({count})" for name, count in dtypes.most_common()),
            "fitting": f"{fitting}, wrong {len(self.wrong)}" if self.compared else "not compared",
            "without effect": str(len(self.dead)),
            **self.companions,
            "can be loaded": "no" if not self.loadable else "yes" if self.compared else "not known here",
        }


def inspect_path(path: str | Path, read_values: bool = True) -> Inspection:
    """Look into a folder of a model or a file of weights; nothing in it is run.

    `read_values` reads every tensor, one at a time, and looks for values that are not finite. Raises UserError for
    what holds no weights, and for weights that are damaged.
    """
    files = find_weights(path)
    kind = kind_of(files)
    own = next((text for name, text in OUR_SETTINGS.items() if (files.parts[0].parent / name).is_file()), None)
    reader = READERS.get(kind) if own is None else None
    found = Inspection(Path(path), own or kind, files, compared=reader is not None)
    if reader is not None:
        try:
            _compare(found, kind, *reader(files))
            if kind == POLICY:
                found.companions, problems = companion_facts(files.parts[0].parent)
                found.problems += problems + _unloadable_parts(files)
        except UserError as error:
            # What stands beside the weights is damaged; what they are is worth telling all the same.
            found.compared = False
            found.problems.append(str(error))
    if read_values:
        for name, tensor in read_tensors(files):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                found.not_finite.append(name)
    return found


def _compare(found: Inspection, kind: str, build: Build, names: Names) -> None:
    fit = fit_of(found.files, build, names)
    found.dead = [name for name in fit.foreign if is_ignored(kind, name)]
    found.missing, found.wrong, found.num_fitting = fit.missing, fit.wrong, len(fit.in_file) - len(fit.wrong)
    found.foreign = [name for name in fit.foreign if name not in found.dead]
    if kind == WORLD_MODEL:
        found.dead = [name for name in found.files.specs if is_dead(name)]


def kind_of(files: WeightFiles) -> str:
    """One of `KINDS`, an adapter, or "unknown"."""
    if any(name.startswith(ADAPTER_PREFIX) for name in files.specs):
        return ADAPTER
    return next((kind for key, kind in KINDS.items() if key in files.specs), "unknown")


def is_ignored(kind: str, name: str) -> bool:
    """Whether loaders pass over a tensor that their network does not have."""
    return is_dead(name) if kind == WORLD_MODEL else kind == POLICY and is_stored_frequency(name)


def _unloadable_parts(files: WeightFiles) -> list[str]:
    """Policies are loaded from safetensors alone, and index and parts must agree."""
    if pickles := [part.name for part in files.parts if part.suffix != ".safetensors"]:
        return [f"{pickles[0]} is no safetensors file: `wmpo checkpoints convert --layout transformers` makes some"]
    if not files.path.is_dir():
        return []
    try:
        weight_shards(files.path)
    except UserError as error:
        return [str(error)]
    return []


def fit_of(files: WeightFiles, build: Build, names: Names) -> Fit:
    """Names and shapes of a network that takes no memory against those of the files."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return compare(files.specs, build(), names)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{files.path}: no network can be made of these sizes: {error}") from error


def _read_world_model(files: WeightFiles) -> tuple[Build, Names]:
    sizes = published_sizes(files)
    keep = any(is_dead(name) for name in files.specs)
    return lambda: STDiT(**sizes, keep_unused_parameters=keep), published_as_is


def _read_reward_model(files: WeightFiles) -> tuple[Build, Names]:
    from transformers import VideoMAEForVideoClassification

    config = published_config(files)
    return lambda: VideoMAEForVideoClassification(config), published_names


def _read_autoencoder(files: WeightFiles) -> tuple[Build, Names]:
    from diffusers import AutoencoderKL

    path = files.parts[0].parent / "config.json"
    settings = read_json(path) if path.is_file() else None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is missing or holds no sizes: an autoencoder's weights do not tell them all")
    blocks = settings.get("block_out_channels")
    if not isinstance(blocks, list) or len(blocks) * int(settings.get("layers_per_block", 1)) > len(files.specs):
        raise UserError(f"{path}: the weights are {len(files.specs)} tensors, too few for these settings")
    return lambda: AutoencoderKL.from_config(settings), published_as_is


def read_policy(files: WeightFiles) -> tuple[Build, Names]:
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

    config = policy_config(files.parts[0].parent, len(files.specs))
    return lambda: OpenVLAOFTPolicy(config), published_as_is


READERS: dict[str, Callable[[WeightFiles], tuple[Build, Names]]] = {
    WORLD_MODEL: _read_world_model,
    AUTOENCODER: _read_autoencoder,
    REWARD_MODEL: _read_reward_model,
    POLICY: read_policy,
}
