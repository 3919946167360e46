"""Configurations of small models of every kind, as folders that a plan can read."""

from __future__ import annotations

import json
from pathlib import Path

from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config

AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}
OPENVLA = {
    "text_config": {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "timm_overrides": {
        "featurizer": {"embed_dim": 24, "depth": 5, "num_heads": 3},
        "fused_featurizer": {"embed_dim": 16, "depth": 4, "num_heads": 2},
    },
    "image_sizes": [126, 126],
}
NETWORK = ["hidden_size=32", "depth=5", "num_heads=2", "patch_size=[1,2,2]"]


def config_of(*settings: str) -> Config:
    return load_config("smoke", ["world_model.pretrained=", *settings])


def autoencoder_settings(folder: Path) -> list[str]:
    """A fresh world model of latents; `folder` is written."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(AUTOENCODER))
    return [f"world_model.codec={folder}", *(f"world_model.network.{setting}" for setting in NETWORK)]


def openvla_settings(folder: Path, **sizes: object) -> list[str]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**OPENVLA, **sizes}))
    return ["policy.kind=openvla_oft", f"policy.pretrained={folder}"]
