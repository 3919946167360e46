"""The kind `diffusion`: our own world models and the published ones."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from wmpo_ray.config.run import Config
from wmpo_ray.core.plan_types import WorldBlueprint
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig
from wmpo_ray.world_models.world_model_kind import WorldModelKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch

    from wmpo_ray.core.interfaces import World
    from wmpo_ray.world_models.diffusion import DiffusionWorldModel


class DiffusionKind(WorldModelKind):
    section = DiffusionConfig
    libraries = ("wmpo_ray.world_models.pretrained_world", "diffusers.hooks.group_offloading")

    def begin(self, config: Config, pretrained: str, seed: int) -> DiffusionWorldModel:
        from wmpo_ray.world_models.pretrained_world import begin_world_model

        return begin_world_model(config, pretrained, seed)

    def load(self, config: Config, path: str, device: torch.device) -> World:
        from wmpo_ray.world_models.diffusion import DiffusionWorldModel
        from wmpo_ray.world_models.pretrained_world import place_world_model

        return place_world_model(DiffusionWorldModel.load(path), config, device)

    def context_frames(self, config: Config, path: str) -> int:
        from wmpo_ray.world_models.diffusion import context_frames_of

        return context_frames_of(path)

    def blueprint(self, config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldBlueprint:
        from wmpo_ray.world_models.world_blueprint import world_blueprint

        return world_blueprint(config, facts, pretrained)

    def problems(self, config: Config, device: torch.device) -> Iterator[str]:
        assert isinstance(config.world_model, DiffusionConfig)
        if config.world_model.attention == "flash":
            if find_spec("flash_attn") is None:
                yield (
                    'world_model.attention="flash" needs the package flash-attn, which is not installed: pip install '
                    "'wmpo-ray[gpu]', or set world_model.attention to \"auto\""
                )
            elif device.type != "cuda":
                yield f'world_model.attention="flash" needs a GPU, and this process computes on {device}; set it to "auto"'
        if config.world_model.compile:
            yield from _compiler_problems()


def _compiler_problems() -> Iterator[str]:
    compiler = os.environ.get("CXX") or "g++"  # as torch.compile looks for it
    knob = "or set world_model.compile to false"
    if shutil.which(compiler) is None:
        yield (
            f"world_model.compile=true needs a C++ compiler, and there is no {compiler}; install one, name it with CXX, "
            f"{knob}"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        yield f"world_model.compile=true needs Python's headers, and there is no {header}; install them, {knob}"
