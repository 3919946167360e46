"""From a configuration to the models and the environment that it chooses, each made by its kind.

Models come back on the device of this process (`cluster.device`), unless another is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from wmpo_ray.algorithms.base import algorithm_class
from wmpo_ray.config.run import Config, EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.interfaces import Environment, Play, Policy, RewardModel, World
from wmpo_ray.core.runtime_settings import configure_process, process_device
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.several_tasks import make_several
from wmpo_ray.environments.task_of_start import tasks_of
from wmpo_ray.kinds import ENVIRONMENTS, POLICIES, REWARD_MODELS, WORLD_MODELS
from wmpo_ray.model_files import held_models


def check_kinds(config: Config) -> None:
    """Raises ConfigError for an environment that cannot be made or an unknown algorithm, before any work is done."""
    check_simulator(config)
    algorithm_class(config.algorithm.kind)


def check_simulator(config: Config) -> None:
    """Raises ConfigError for an environment that cannot be made, or of which there is no simulator.

    Where environment workers have packages of their own, the simulator need not be here.
    """
    if not config.cluster.environment_runtime_env.for_ray():
        tasks_of(config.environment)  # of several, none must be like another
        for section in _sections(config.environment):
            ENVIRONMENTS.find(section.kind).check(section)


def make_environment(config: EnvironmentConfig) -> Environment:
    """The environment of its task, or of all of its tasks. Raises ConfigError where there is no simulator."""
    make = ENVIRONMENTS.find(config.kind).make
    return make_several(config, make) if config.task_names else make(config)


def _sections(config: EnvironmentConfig) -> list[EnvironmentConfig]:
    """That of each task alone."""
    return list(config.variants.values()) or [config]


def has_ability(config: EnvironmentConfig, ability: str) -> bool:
    """Whether the environment can be made here, and has this ability."""
    try:
        return ability in make_environment(config).abilities
    except ConfigError:  # no simulator of it
        return False


def disruptions_of(config: EnvironmentConfig) -> tuple[str, ...]:
    """What the environment can disrupt, besides "none"."""
    kind: Any = ENVIRONMENTS.find(config.kind)
    if not hasattr(kind, "disruptions"):  # of packages older than it
        return ()
    first, *rest = (kind.disruptions(section) for section in _sections(config))
    return tuple(name for name in first if all(name in other for other in rest))


def make_play(config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play] | None:
    """Undirected episodes of the environment, made as they are asked for; None where its kind has none.

    Of several tasks, one after the other, each its share.
    """
    kind: Any = ENVIRONMENTS.find(config.kind)
    if not hasattr(kind, "play"):  # of packages older than play
        return None
    if (tasks := tasks_of(config)) is None:
        return kind.play(config, num, seed)
    counts, sections = Counter(tasks.of_seeds(range(num))), config.variants
    parts = [kind.play(sections[name], count, seed_for(seed, "play", name)) for name, count in counts.items()]
    return None if None in parts else chain.from_iterable(parts)


# -- policies ----------------------------------------------------------------------------------------------------


def create_policy(config: Config, demos: Episodes, *, device: torch.device | str | None = None) -> Policy:
    """A fresh policy for the demonstrations. Raises ConfigError where its kind has none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "policy"))
        policy: Any = POLICIES.find(config.policy.kind).create(config, demos)
    return policy.to(_device(config, device))


def load_policy(
    config: Config, path: str, *, training: bool = False, device: torch.device | str | None = None
) -> Policy:
    """The policy saved in `path`, with the adapters that the config asks for.

    `training`: to be trained, so with float32 weights, and activations checkpointed where the config says so. Raises
    ConfigError for a policy of another environment or another chunk.
    """
    target = _device(config, device)
    if not training and (held := held_models.take("policy", config, path, target)) is not None:
        return held
    kind = POLICIES.find(config.policy.kind)
    return _checked(config, kind.load(config, path, training=training, device=target), path)


def pretrained_policy(config: Config) -> Policy:
    """The policy of `policy.pretrained` as it is: in the dtype it was saved in, without adapters, on the CPU."""
    return _checked(config, POLICIES.find(config.policy.kind).pretrained(config), config.policy.pretrained)


def _checked(config: Config, policy: Policy, path: str) -> Policy:
    facts = environment_facts(config.environment)
    for key, own, wanted in (
        ("rollout.chunk_length", policy.chunk_length, config.rollout.chunk_length),
        ("the action dimensions of environment.kind", policy.action_dim, facts.action_dim),
    ):
        if own != wanted:
            raise ConfigError(f"{key}={wanted}, the policy in {path} was made for {own}; change policy.pretrained")
    return policy


# -- world models and reward models ------------------------------------------------------------------------------


def begin_world_model(config: Config, pretrained: str, seed: int) -> Any:
    """What alignment begins with, on the CPU: `pretrained` is a folder or a shipped name, "": a fresh network."""
    return WORLD_MODELS.find(config.world_model.kind).begin(config, pretrained, seed)


def load_world_model(config: Config, path: str, *, device: torch.device | str | None = None) -> World:
    """The world model that a run saved in `path`; a simulator needs no files."""
    target = _device(config, device)
    if (held := held_models.take("world_model", config, path, target)) is not None:
        return held
    return WORLD_MODELS.find(config.world_model.kind).load(config, path, target)


def create_reward_model(config: Config, frame_size: FrameSize, instructions: Sequence[str]) -> RewardModel:
    """A fresh reward model on the CPU. Raises ConfigError where its kind has none."""
    return REWARD_MODELS.find(config.reward.kind).create(config, frame_size, instructions)


def load_reward_model(config: Config, path: str, *, device: torch.device | str | None = None) -> RewardModel:
    """The reward model that a run saved in `path`, with its threshold."""
    target = _device(config, device)
    if (held := held_models.take("reward_model", config, path, target)) is not None:
        return held
    model = REWARD_MODELS.find(config.reward.kind).load(config, path)
    model.network.to(target)
    return model


def pretrained_reward_model(config: Config) -> RewardModel:
    """The reward model of `reward.pretrained` on the CPU. Raises ConfigError for settings that its weights contradict."""
    model = REWARD_MODELS.find(config.reward.kind).pretrained(config)
    if model.clip_length != config.reward.clip_length:
        raise ConfigError(
            f"reward.clip_length={config.reward.clip_length}: the reward model in {config.reward.pretrained} judges clips "
            f"of {model.clip_length} frames; set reward.clip_length={model.clip_length}"
        )
    return model


def hold_models(config: Config, folders: Mapping[str, str], build: bool) -> None:
    """Read the files of models ahead of need, by their names in `Role.models`; `build`: and load them, on the CPU.

    Whoever loads one of them in this process later is given it. Raises what loading raises.
    """
    loaders: dict[str, tuple[str, Any]] = {
        "policy": ("policy", load_policy),
        "world_model": ("world_model", load_world_model),
        "verifier": ("world_model", load_world_model),
        "reward_model": ("reward_model", load_reward_model),
    }
    configure_process(config.cluster.threads_per_process)
    for name, folder in folders.items():
        if build:
            kind, load = loaders[name]
            held_models.hold(kind, config, folder, partial(load, config, folder, device="cpu"))
        else:
            held_models.read_files(folder)


def _device(config: Config, device: torch.device | str | None) -> torch.device:
    return torch.device(device) if device else process_device(config.cluster.device)
