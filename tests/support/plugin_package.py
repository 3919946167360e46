"""Packages from outside, each one file with kinds and their entry points. `install_package` installs one into a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

POLICY = '''
"""A policy that maps the pixels to the logits of its action tokens with one matrix."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from wmpo_ray.config.models import PolicyConfig
from wmpo_ray.core.interfaces import Decision
from wmpo_ray.core.section import Count, Section
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.policies.action_tokens import decode_tokens, encode_actions, executed_tokens, sample_tokens
from wmpo_ray.policies.policy_kind import PolicyKind


class Sizes(Section):
    num_bins: Count = 16


class LinearConfig(PolicyConfig):
    kind: Literal["linear"] = "linear"
    linear: Sizes = Sizes()


class LinearPolicy(nn.Module):
    _no_split_modules: ClassVar[list[str]] = []

    def __init__(self, num_pixels, chunk_length, action_dim, num_bins):
        super().__init__()
        self.chunk_length, self.action_dim, self.num_bins = chunk_length, action_dim, num_bins
        self.map = nn.Linear(num_pixels, chunk_length * action_dim * num_bins)

    def logits(self, frames):
        return self.map(torch.as_tensor(frames).flatten(1).float() / 255).unflatten(1, (-1, self.num_bins))

    @torch.no_grad()
    def act(self, observation, temperature, seeds):
        logits = self.logits(observation.frames)
        tokens, logprobs = sample_tokens(logits, temperature, keyed_noise(seeds, (logits.shape[1],), uniform=True))
        actions = decode_tokens(tokens, self.num_bins).unflatten(1, (self.chunk_length, self.action_dim))
        return Decision(actions, {"tokens": tokens}, logprobs)

    def log_prob(self, observation, record, temperature):
        logprobs = F.log_softmax(self.logits(observation.frames) / temperature, -1)
        return logprobs.gather(-1, record["tokens"][..., None])[..., 0]

    def executed(self, num_actions):
        return executed_tokens(num_actions, self.chunk_length, self.action_dim)

    def cloning_loss(self, observation, actions, seeds=None):
        logits = self.logits(observation.frames)
        return F.cross_entropy(logits.flatten(0, 1), encode_actions(actions, self.num_bins).flatten())

    def save_pretrained(self, path, **kwargs):
        Path(path).mkdir(exist_ok=True)
        save_file(kwargs.get("state_dict") or self.state_dict(), Path(path) / "linear.safetensors")


class LinearKind(PolicyKind):
    section = LinearConfig

    def create(self, config, demos):
        num_pixels = int(np.prod(demos.frames.shape[2:]))
        num_bins = config.policy.linear.num_bins
        return LinearPolicy(num_pixels, config.rollout.chunk_length, demos.actions.shape[-1], num_bins)

    def load(self, config, path, *, training, device):
        weights = load_file(Path(path) / "linear.safetensors")
        chunk, bins = config.rollout.chunk_length, config.policy.linear.num_bins
        num_outputs, num_pixels = weights["map.weight"].shape
        policy = LinearPolicy(num_pixels, chunk, num_outputs // (chunk * bins), bins)
        policy.load_state_dict(weights)
        return policy.to(device)
'''

OTHERS = '''
"""An environment, a world model and a reward model; they borrow what they can."""

from typing import Literal

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.section import Positive
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.reward_models.videomae_kind import VideoMAEKind
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig
from wmpo_ray.world_models.simulator_kind import SimulatorConfig, SimulatorKind


class RoomConfig(EnvironmentConfig):
    kind: Literal["room"] = "room"
    friction: Positive = 0.5


class RoomKind(EnvironmentKind):
    section = RoomConfig

    def facts(self, config):
        return EnvironmentFacts(PocketEnvironment.frame_shape, 3, ("cross the room",))

    def make(self, config):
        environment = PocketEnvironment(horizon=config.horizon)
        environment.friction = config.friction
        return environment


class RoomWorldConfig(SimulatorConfig):
    kind: Literal["room_world"] = "room_world"


class RoomWorldKind(SimulatorKind):
    section = RoomWorldConfig


class RoomRewardConfig(NetworkRewardConfig):
    kind: Literal["room_reward"] = "room_reward"
    patience: Positive = 1.0


class RoomRewardKind(VideoMAEKind):
    section = RoomRewardConfig
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1"

{entries}

[tool.setuptools]
py-modules = ["{module}"]
"""


def install_package(folder: Path, name: str, text: str, entries: dict[str, dict[str, str]]) -> Path:
    """Build a package of one module and install it with pip; the folder to put on the path is returned.

    `entries`: for each table, such as "policies", the kinds and the names of their classes.
    """
    source, target = folder / f"{name}-source", folder / f"{name}-installed"
    module = name.replace("-", "_")
    source.mkdir()
    (source / f"{module}.py").write_text(text)
    lines = ""
    for table, kinds in entries.items():
        lines += f'[project.entry-points."wmpo_ray.{table}"]\n'
        lines += "".join(f'{kind} = "{module}:{cls}"\n' for kind, cls in kinds.items())
    (source / "pyproject.toml").write_text(PROJECT.format(name=name, module=module, entries=lines))
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        check=True,
        capture_output=True,
    )
    return target
