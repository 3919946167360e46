"""Configurations of small models of every kind, as folders that a plan can read."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.setups import SMALL_AUTOENCODER, SMALL_TOWERS
from tests.support.openvla import TEXT
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config

OPENVLA = {
    "text_config": {**TEXT, "num_hidden_layers": 5},
    "timm_overrides": {
        "featurizer": {**SMALL_TOWERS["featurizer"], "depth": 5},
        "fused_featurizer": {**SMALL_TOWERS["fused_featurizer"], "depth": 4},
    },
    "image_sizes": [126, 126],
}
NETWORK = ["hidden_size=32", "depth=5", "num_heads=2", "patch_size=[1,2,2]"]


def config_of(*settings: str) -> Config:
    return load_config("smoke", ["world_model.pretrained=", *settings])


def autoencoder_settings(folder: Path) -> list[str]:
    """A fresh world model of latents; `folder` is written."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL_AUTOENCODER))
    return [f"world_model.codec={folder}", *(f"world_model.network.{setting}" for setting in NETWORK)]


def openvla_settings(folder: Path, **sizes: object) -> list[str]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**OPENVLA, **sizes}))
    return ["policy.kind=openvla_oft", f"policy.pretrained={folder}"]
