"""One small instance of everything that is registered: what the contracts are tested on.

A new kind adds an entry here and passes `tests/contract`.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.openvla import small_policy
from tests.support.published_set import small_reward_model
from tests.support.reach_gym import REACH
from tests.support.remote_servers import pocket_address
from tests.support.small_vlm import write_vlm
from wmpo_ray import kinds
from wmpo_ray.config.kind_sections import section_class
from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Environment
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.environments.simulators.opengl import choose_backend
from wmpo_ray.policies.flow.flow_policy import FlowPolicy, FlowPolicyHFConfig
from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy, Use
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.registry import make_environment
from wmpo_ray.reward_models.frame import FrameRewardModel
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.reward_models.vlm import VlmRewardModel
from wmpo_ray.reward_models.vlm_settings import VlmRewardConfig
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig

HORIZON = 8
GOLDEN = Path(__file__).parents[1] / "golden"


def make_diffusion() -> DiffusionWorldModel:
    config = DiffusionConfig.model_validate(
        {"network": {"hidden_size": 16, "depth": 1, "num_heads": 2}, "sampler": {"num_steps": 2}}
    )
    world_model = DiffusionWorldModel.create(config, 3, 4, seed=0)
    torch.nn.init.normal_(world_model.denoiser.network.final_layer.linear.weight, std=0.1)
    return world_model


def make_environment_world() -> EnvironmentWorld:
    return EnvironmentWorld(PocketEnvironment(HORIZON), 4)


def make_tiny() -> TinyPolicy:
    torch.manual_seed(0)
    return TinyPolicy(
        TinyPolicyHFConfig(width=16, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary_of(INSTRUCTIONS))
    ).eval()


def make_flow() -> FlowPolicy:
    torch.manual_seed(0)
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "patch_size": 8}
    return FlowPolicy(FlowPolicyHFConfig(**sizes, vocabulary=vocabulary_of(INSTRUCTIONS))).eval()


def published_flow(kind: str) -> PublishedFlowPolicy:
    """A folder of lerobot's with weights so small that a chunk's path is smooth."""
    policy = PublishedFlowPolicy.load(GOLDEN / kind, Use(4))
    with torch.no_grad():
        policy.model.action_out_proj.weight.mul_(0.1)
    return policy


def make_reward_model() -> VideoMAERewardModel:
    config = VideoMAERewardConfig.model_validate({"network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}})
    return VideoMAERewardModel.create(config, 16, INSTRUCTIONS, 0)


def make_frame_reward_model(clip_length: int = 1, knows_progress: bool = False) -> FrameRewardModel:
    settings = {"network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "clip_length": clip_length}
    config = FrameRewardConfig.model_validate(settings | {"progress_weight": float(knows_progress)})
    return FrameRewardModel.create(config, 16, INSTRUCTIONS, 0)


@functools.cache
def vlm_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="small-vlm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_vlm(folder)


def make_vlm(**settings: Any) -> VlmRewardModel:
    config = VlmRewardConfig.model_validate({"pretrained": str(vlm_folder())} | settings)
    return VlmRewardModel.load(vlm_folder(), config)


def make_starts(count: int = 3) -> list[StartState]:
    environment = PocketEnvironment(HORIZON)
    frames = environment.reset(np.arange(count))
    return [
        StartState(f[None], text, i) for i, (f, text) in enumerate(zip(frames, environment.instruction, strict=True))
    ]


def random_actions(count: int = 3, length: int = 4, seed: int = 0, dim: int = 3) -> torch.Tensor:
    """Actions [count, length, dim] in [-1, 1]."""
    return torch.rand(count, length, dim, generator=torch.Generator().manual_seed(seed)) * 2 - 1


ENVIRONMENT_SETTINGS: dict[str, dict[str, Any]] = {
    "pocket": {},
    "gymnasium": REACH,
    "pusht": {},
    "metaworld": {},
    "robosuite": {"image_size": 32},
    "lift": {},
    "stack": {},
    "remote": {"instructions": INSTRUCTIONS},
}
SEVERAL_TASKS = {"several tasks": {"kind": "pocket", "task_names": ("pocket", "push")}}  # what such an environment is
# Modules that are not installed everywhere.
SIMULATORS = {
    "pusht": "gym_pusht",
    "metaworld": "metaworld",
    "robosuite": "robosuite",
    "lift": "robosuite",
    "stack": "robosuite",
}


DRAW_WITH_OPENGL = {"metaworld", "robosuite", "lift", "stack"}


def environment_section(kind: str, **settings: Any) -> EnvironmentConfig:
    if kind == "remote":
        settings["address"] = pocket_address(settings.get("horizon", 32))
    own = {"kind": kind, **(ENVIRONMENT_SETTINGS | SEVERAL_TASKS)[kind], **settings}
    return section_class(kinds.ENVIRONMENTS, own["kind"]).model_validate(own)


def small_environment(kind: str, horizon: int = HORIZON) -> Environment:
    """Makes no simulator yet."""
    return make_environment(environment_section(kind, horizon=horizon))


def require_simulator(kind: str) -> None:
    """Skip the test where the simulator of this kind is not installed, or nothing can be drawn for it."""
    if module := SIMULATORS.get(kind):
        if kind in DRAW_WITH_OPENGL and find_spec(module) is not None:
            try:
                choose_backend()  # before the module is imported
            except ConfigError as error:
                pytest.skip(f"{kind}: {error}")
        pytest.importorskip(module, exc_type=ImportError)


ENVIRONMENTS = {kind: functools.partial(small_environment, kind) for kind in ENVIRONMENT_SETTINGS}
POLICIES = {
    "tiny": make_tiny,
    "openvla_oft": small_policy,
    "flow": make_flow,
    "smolvla": functools.partial(published_flow, "smolvla"),
    "pi0": functools.partial(published_flow, "pi0"),
}
WORLDS = {"diffusion": make_diffusion, "simulator": make_environment_world}
REWARD_MODELS = {
    "videomae": make_reward_model,
    "frame": make_frame_reward_model,
    "vlm": make_vlm,
    "videomae_published": small_reward_model,
}
