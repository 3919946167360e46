"""Kinds of models in files: what each is known by, which network it belongs to, and what loaders pass over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_json
from wmpo_ray.model_files.weight_files import WeightFiles, published_as_is
from wmpo_ray.model_files.weight_names import ADAPTER_PREFIX
from wmpo_ray.policies.flow.flow_policy import FlowPolicy
from wmpo_ray.policies.flow.vla_weights import PREFIX, is_output_layer
from wmpo_ray.policies.flow.vla_weights import published_names as vla_names
from wmpo_ray.policies.openvla.contents import companion_facts
from wmpo_ray.policies.openvla.prompt import json_encoder
from wmpo_ray.policies.openvla.published_files import is_stored_frequency
from wmpo_ray.policies.openvla.settings import read_config
from wmpo_ray.policies.small_policy import SmallPolicy
from wmpo_ray.policies.tiny import TinyPolicy
from wmpo_ray.reward_models.published_videomae import published_config, published_names, published_preprocessing
from wmpo_ray.world_models.autoencoder import autoencoder_build
from wmpo_ray.world_models.published_stdit import published_sizes
from wmpo_ray.world_models.stdit import STDiT, is_dead

# Folders that `wmpo run` writes say what they are.
OUR_SETTINGS = {"world_model.json": "world model of wmpo", "reward_model.json": "reward model of wmpo"}

Names = Callable[[str], tuple[str, ...]]
Build = Callable[[], nn.Module]


def _no_network(files: WeightFiles) -> None:
    return None


def _no_tensor(name: str) -> bool:
    return False


def _no_problems(files: WeightFiles) -> list[str]:
    return []


def _nothing_beside(files: WeightFiles) -> tuple[dict[str, str], list[str]]:
    return {}, []


@dataclass(frozen=True)
class CheckpointKind:
    """`key` is a tensor that no other kind has, `older_key` its name in older files. Functions of a tensor's name answer
    for published files.
    """

    name: str
    key: str = ""
    older_key: str = ""
    # What makes its network, and the names that a tensor of it may have; None: there is none here to compare with.
    network: Callable[[WeightFiles], tuple[Build, Names] | None] = _no_network
    is_passed_over: Callable[[str], bool] = _no_tensor  # by loaders, where their network does not have the tensor
    has_no_effect: Callable[[str], bool] = _no_tensor  # on any result
    problems: Callable[[WeightFiles], list[str]] = _no_problems  # with the files themselves
    # What the small files beside the weights say, and what is wrong with them.
    beside: Callable[[WeightFiles], tuple[dict[str, str], list[str]]] = _nothing_beside


def _world_model(files: WeightFiles) -> tuple[Build, Names]:
    sizes = published_sizes(files)
    keep = any(is_dead(name) for name in files.specs)
    return lambda: STDiT(**sizes, keep_unused_parameters=keep), published_as_is


def _reward_model(files: WeightFiles) -> tuple[Build, Names]:
    from transformers import VideoMAEForVideoClassification

    config = published_config(files)
    published_preprocessing(files, config)
    return lambda: VideoMAEForVideoClassification(config), published_names


def _autoencoder(files: WeightFiles) -> tuple[Build, Names]:
    return autoencoder_build(files.parts[0].parent / "config.json", len(files.specs)), published_as_is


def policy_network(files: WeightFiles) -> tuple[Build, Names]:
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

    config = read_config(files.parts[0].parent, num_tensors=len(files.specs))
    return lambda: OpenVLAOFTPolicy(config), published_as_is


def _vla_network(files: WeightFiles) -> tuple[Build, Names] | None:
    """None for a SmolVLA without the sizes of the model that it was built on: a run may name them elsewhere."""
    from wmpo_ray.policies.flow.published import VLM_CONFIG, read_folder
    from wmpo_ray.policies.flow.vla_weights import network_of

    path = files.parts[0].parent
    folder = read_folder(path)
    if folder.settings.type == "smolvla" and VLM_CONFIG not in folder.files:
        return None
    return network_of(path, folder)[1], vla_names


def _beside_vla(files: WeightFiles) -> tuple[dict[str, str], list[str]]:
    from wmpo_ray.policies.flow.published import TOKENIZER, VLM_CONFIG, read_folder

    folder = read_folder(files.parts[0].parent)
    settings = folder.settings
    facts = {
        "type": settings.type,
        "actions": f"chunks of {settings.chunk_size} x {settings.action_dim}, denoised",
        "images": ", ".join(settings.cameras) or "none",
    }
    if settings.type == "smolvla" and VLM_CONFIG not in folder.files:
        facts["built on"] = f"not here: no {VLM_CONFIG}; policy.vla.vlm names the folder that has it"
    if TOKENIZER not in folder.files:
        return {**facts, "tokenizer": f"not here: no {TOKENIZER}; policy.vla.vlm names the folder that has it"}, []
    try:
        json_encoder(folder.files[TOKENIZER])
    except UserError as error:
        return facts, [f"{files.parts[0].parent}: {error}"]
    return {**facts, "tokenizer": TOKENIZER}, []


def _vla(name: str, reader: str) -> CheckpointKind:
    """A policy in a folder of lerobot's; `reader`: a tensor of the model that reads, as files of today name it."""
    return CheckpointKind(
        name,
        PREFIX + reader,
        reader,
        _vla_network,
        is_passed_over=is_output_layer,
        has_no_effect=is_output_layer,
        beside=_beside_vla,
    )


def _small_policy(name: str, key: str, policy: type[SmallPolicy]) -> CheckpointKind:
    """One of those that `wmpo run` makes itself."""

    def network(files: WeightFiles) -> tuple[Build, Names]:
        return policy.build_of(files.parts[0].parent, len(files.specs)), published_as_is

    def beside(files: WeightFiles) -> tuple[dict[str, str], list[str]]:
        config: Any = policy.config_class.from_dict(
            read_json(files.parts[0].parent / "config.json", MAX_SETTINGS_BYTES)
        )
        values = f"{config.num_bins} bins" if hasattr(config, "num_bins") else "denoised"
        return {
            "actions": f"chunks of {config.chunk_length} x {config.action_dim}, {values}",
            "words": str(len(config.vocabulary)),
        }, []

    return CheckpointKind(name, key, network=network, beside=beside)


def _beside_policy(files: WeightFiles) -> tuple[dict[str, str], list[str]]:
    return companion_facts(files.parts[0].parent)


def _unloadable_parts(files: WeightFiles) -> list[str]:
    """Policies are loaded from safetensors alone."""
    if pickles := [part.name for part in files.parts if part.suffix != ".safetensors"]:
        return [f"{pickles[0]} is no safetensors file: `wmpo checkpoints convert --layout transformers` makes some"]
    return []


WORLD_MODEL = CheckpointKind(
    "world model (STDiT)", "x_embedder.proj.weight", network=_world_model, is_passed_over=is_dead, has_no_effect=is_dead
)
AUTOENCODER = CheckpointKind("autoencoder (AutoencoderKL)", "encoder.conv_in.weight", network=_autoencoder)
REWARD_MODEL = CheckpointKind(
    "reward model (VideoMAE classifier)",
    "videomae.embeddings.patch_embeddings.projection.weight",
    network=_reward_model,
)
POLICY = CheckpointKind(
    "policy (OpenVLA)",
    "language_model.model.embed_tokens.weight",
    network=policy_network,
    is_passed_over=is_stored_frequency,
    problems=_unloadable_parts,
    beside=_beside_policy,
)
SMOLVLA = _vla("policy of lerobot (SmolVLA)", "vlm_with_expert.lm_expert.norm.weight")
PI = _vla("policy of lerobot (pi0 or pi0.5)", "paligemma_with_expert.paligemma.model.language_model.norm.weight")
FLOW_POLICY = _small_policy("policy of wmpo (flow)", "action_position", FlowPolicy)
TINY_POLICY = _small_policy("policy of wmpo (tiny)", "queries", TinyPolicy)
TINY_AUTOENCODER = CheckpointKind("tiny autoencoder (AutoencoderTiny)", "decoder.layers.0.weight")
KINDS = (WORLD_MODEL, AUTOENCODER, REWARD_MODEL, POLICY, SMOLVLA, PI, FLOW_POLICY, TINY_POLICY, TINY_AUTOENCODER)
ADAPTER = CheckpointKind("adapter (merge it into its model first)")
UNKNOWN = CheckpointKind("unknown")


def kind_of(files: WeightFiles) -> CheckpointKind:
    """One of `KINDS`, an adapter, or unknown."""
    if any(name.startswith(ADAPTER_PREFIX) for name in files.specs):
        return ADAPTER
    return next((kind for kind in KINDS if kind.key in files.specs or kind.older_key in files.specs), UNKNOWN)
