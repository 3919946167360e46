"""Full-size networks against the published lists of names and shapes, where tensors take no memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.model_files.weight_files import published_as_is
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.reward_models.published_videomae import published_names
from wmpo_ray.world_models.stdit import STDiT


def _video_transformer(manifest: Mapping[str, Any]) -> nn.Module:
    known = inspect.signature(STDiT.__init__).parameters
    sizes = {name: value for name, value in manifest["builder_kwargs_wmpo"].items() if name in known}
    return STDiT.from_preset("XL/2", **sizes, keep_unused_parameters=True)


def _autoencoder(manifest: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**manifest["config"])


def _video_classifier(manifest: Mapping[str, Any]) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    return VideoMAEForVideoClassification(VideoMAEConfig.from_dict(manifest["config"]))


def _policy(manifest: Mapping[str, Any]) -> nn.Module:
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
    from wmpo_ray.policies.openvla.settings import build_config

    return OpenVLAOFTPolicy(build_config(manifest["config_json_as_generated"], {}))


# The network of a manifest, and the names its tensors have in files.
NETWORKS: dict[str, tuple[Callable[[Mapping[str, Any]], nn.Module], Callable[[str], tuple[str, ...]]]] = {
    "stdit3_xl2_wmpo": (_video_transformer, published_as_is),
    "sdxl_vae": (_autoencoder, published_as_is),
    "videomae_base_cls": (_video_classifier, published_names),
    "openvla_7b_hf": (_policy, published_as_is),
}


def manifest_mismatches(folder: str | Path) -> dict[str, list[str]]:
    """For each known manifest in a folder, a line for each tensor that is missing, foreign or of another shape."""
    paths = {name: Path(folder) / f"{name}.json" for name in NETWORKS}
    return {name: list(_mismatches(name, path)) for name, path in paths.items() if path.is_file()}


def check(folder: Path) -> list[ParityCase]:
    """The number of mismatches of each manifest."""
    return [
        ParityCase(f"manifest {name}", "names and shapes", float(len(lines)), 0.0)
        for name, lines in manifest_mismatches(folder).items()
    ]


def _mismatches(name: str, path: Path) -> Iterator[str]:
    manifest, (build, names) = read_json(path), NETWORKS[name]
    try:
        published = {key: tuple(entry["shape"]) for key, entry in manifest["tensors"].items()}
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            ours = {names(key)[0]: tuple(tensor.shape) for key, tensor in build(manifest).state_dict().items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no manifest: {error}") from error
    for key in sorted(ours.keys() | published.keys()):
        if key not in ours:
            yield f"{key}: not in the network"
        elif key not in published:
            yield f"{key}: not published"
        elif ours[key] != published[key]:
            yield f"{key}: {ours[key]}, published {published[key]}"
