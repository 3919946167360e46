"""Checks that several stages run before the first stage begins."""

from __future__ import annotations

from pathlib import Path

from learners.supervised.loop import TrainingConfig, check_batch
from wmpo_ray.config.cluster import bounds
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.world_models.diffusion import PRETRAINED_DIR


def check_pretrained(key: str, path: str) -> None:
    """Raises UserError for pretrained weights that a stage could not load."""
    if not path:
        return
    if Path(path).exists():
        from wmpo_ray.checkpoints.inspection import check_loadable  # imports every kind of model

        check_loadable(path, key)
    elif not (PRETRAINED_DIR / path).exists():
        raise UserError(f"{key} = {path}: does not exist; set {key} to the folder of a model")


def check_workers(config: Config, section: str, settings: TrainingConfig, serial: bool) -> None:
    """Raises ConfigError for more training workers than samples in a batch."""
    if settings.steps and not serial:
        check_batch(settings, section, bounds(config.cluster.training_workers)[1])
