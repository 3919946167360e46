"""What a configuration would run: which actor holds which models, how much work an update is. Nothing is trained.

The work is counted by running each model once on one trajectory, so it follows every option of the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wmpo_ray.config import Config
from wmpo_ray.config_cluster import RolePlacement, Size, bounds
from wmpo_ray.interfaces import Environment
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.registry import make_environment
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.types import StartState
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

MIB = 2**20
NUM_INSTRUCTION_SCENES = 64  # scenes that are looked at to learn which instructions there are
TRAINING_COPIES = 4  # weights, gradients and the two moments of AdamW
EPSILON = 1e-6
BACKWARD_FACTOR = 3  # a backward pass costs about two forward passes


@dataclass(frozen=True)
class ModelCost:
    """One model as an actor holds it; `tflop` is the work of one `unit`."""

    name: str
    num_parameters: int
    memory_mib: float  # weights only
    unit: str
    tflop: float


@dataclass(frozen=True)
class ActorPlan:
    """`min_count` to `count` processes with `cpus` and `gpus` each, on nodes with that accelerator and those labels.

    `memory_mib` is that of the models of one, optimizer state included.
    """

    name: str
    min_count: int
    count: int
    cpus: float
    gpus: float
    accelerator_type: str  # "": any
    labels: tuple[str, ...]
    models: tuple[str, ...]
    memory_mib: float


@dataclass(frozen=True)
class Work:
    """At most so much of it in one update: trajectories of their full length, and no group rejected."""

    name: str
    amount: int
    unit: str
    tflop: float


@dataclass(frozen=True)
class Plan:
    actors: tuple[ActorPlan, ...]
    models: tuple[ModelCost, ...]
    work: tuple[Work, ...]
    real_budget: int  # real trajectories that the method may use: P
    real_demos: int
    num_slots: int  # groups that may be in flight or waiting at once
    video_mib: float  # frames of one request on their way to a reward actor
    batch_mib: float  # what the learner holds for one update


def make_plan(config: Config) -> Plan:
    """Build the models of `config` and count. Raises UserError where a pretrained world model is missing."""
    environment = make_environment(config.environment)
    policy = _policy_cost(config, environment)
    world = _world_model_cost(config, environment)
    reward = _reward_model_cost(config, environment)
    rollout, horizon = config.rollout, config.environment.horizon
    frame_bytes = int(np.prod(environment.frame_shape))
    num_tokens = rollout.chunk_length * environment.action_dim
    decision_bytes = frame_bytes + num_tokens * (8 + 4 + 4)  # tokens int64, log-probabilities and actions float32
    batch_size = rollout.group_size * rollout.groups_per_update
    return Plan(
        actors=_actors(config, policy, world, reward),
        models=(policy, world, reward),
        work=_work(config, policy, world, reward),
        real_budget=config.collect.num_trajectories,
        real_demos=config.demos.num_trajectories,
        num_slots=(config.filter.max_staleness + 1) * rollout.groups_per_update,
        video_mib=rollout.groups_per_request * rollout.group_size * (horizon + 1) * frame_bytes / MIB,
        batch_mib=batch_size * config.num_chunks * decision_bytes / MIB,
    )


class Demand(Protocol):
    """Resources that one node must give together."""

    @property
    def name(self) -> str: ...

    @property
    def resources(self) -> Mapping[str, float]: ...

    @property
    def label_selector(self) -> Mapping[str, str]: ...


def first_fit(demands: Sequence[Demand], nodes: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Demand -> name of the first node that has room for it beside those before it, or None where none has.

    Demands that are hard to place go first: those that name an accelerator or a label, then the largest. Nodes without
    GPUs are filled first, so that who needs no GPU blocks none. A share of a GPU is taken of one GPU, whole ones of
    empty ones. Not the best packing there is; Ray does not look for that either.

    Args:
        nodes: as `ray.nodes()` gives them: "Alive", "NodeName", "Resources" in total, "Labels"
    """
    rooms = [_Room(node) for node in nodes if node["Alive"]]
    rooms.sort(key=lambda room: len(room.gpus))

    def hardness(demand: Demand) -> tuple[float, ...]:
        resources = demand.resources
        constraints = len(demand.label_selector) + len(resources.keys() - {"CPU", "GPU"})
        return constraints, resources.get("GPU", 0.0), resources.get("CPU", 0.0)

    found: dict[str, str | None] = {demand.name: None for demand in demands}
    for demand in sorted(demands, key=hardness, reverse=True):
        room = next((room for room in rooms if room.has_room_for(demand)), None)
        if room is not None:
            room.take(demand.resources)
            found[demand.name] = room.name
    return found


class _Room:
    """What is left of a node."""

    def __init__(self, node: Mapping[str, Any]):
        self.name: str = node["NodeName"]
        self.labels: Mapping[str, str] = node["Labels"]
        self.left = {kind: amount for kind, amount in node["Resources"].items() if kind != "GPU"}
        self.gpus = [1.0] * int(node["Resources"].get("GPU", 0))  # free share of each

    def has_room_for(self, demand: Demand) -> bool:
        plain = all(self.left.get(kind, 0.0) + EPSILON >= x for kind, x in demand.resources.items() if kind != "GPU")
        labelled = all(self.labels.get(key) == value for key, value in demand.label_selector.items())
        return plain and labelled and self._gpus_for(demand.resources.get("GPU", 0.0)) is not None

    def take(self, resources: Mapping[str, float]) -> None:
        for kind, amount in resources.items():
            if kind != "GPU":
                self.left[kind] -= amount
        gpus = resources.get("GPU", 0.0)
        for i in self._gpus_for(gpus) or ():
            self.gpus[i] -= min(gpus, 1.0)

    def _gpus_for(self, amount: float) -> list[int] | None:
        """Indices of the GPUs that would be taken; None if there are too few."""
        count = math.ceil(amount)
        fitting = [i for i, free in enumerate(self.gpus) if free + EPSILON >= min(amount, 1.0)]
        return fitting[:count] if len(fitting) >= count else None


# -- models ------------------------------------------------------------------------------------------------------


def _policy_cost(config: Config, environment: Environment) -> ModelCost:
    settings = TinyPolicyHFConfig(
        **config.policy.network.model_dump(),
        frame_size=environment.frame_shape[0],
        chunk_length=config.rollout.chunk_length,
        action_dim=environment.action_dim,
        vocabulary=vocabulary_of(_instructions(environment)),
    )
    with torch.random.fork_rng(devices=[]):
        policy = TinyPolicy(settings).eval()
    start = _start(environment)
    tflop = _tflop(lambda: policy.act(start.frames, [start.instruction], 1.0, [0]))
    return ModelCost("policy", *_size(policy), "decision", tflop)


def _world_model_cost(config: Config, environment: Environment) -> ModelCost:
    if config.world_model.kind == "simulator":
        return ModelCost("world model (simulator)", 0, 0.0, "chunk", 0.0)
    chunk, dim = config.rollout.chunk_length, environment.action_dim
    if config.world_model.pretrained:
        world_model = DiffusionWorldModel.load(config.world_model.pretrained)
    else:
        world_model = DiffusionWorldModel.create(config.world_model, dim, chunk, config.seed)
    state = world_model.start([_start(environment)])
    actions = torch.zeros(1, world_model.chunk_length, dim)
    tflop = _tflop(lambda: world_model.imagine_chunk(state, actions, [0]))
    return ModelCost("world model", *_size(world_model.denoiser.network), "chunk", tflop)


def _reward_model_cost(config: Config, environment: Environment) -> ModelCost:
    size = environment.frame_shape[0]
    model = VideoMAERewardModel.create(config.reward, size, _instructions(environment), config.seed)
    start = _start(environment)
    clip = np.repeat(start.frames[None], config.reward.clip_length, 1)
    tflop = _tflop(lambda: model.probabilities(clip, [start.instruction]))
    return ModelCost("reward model", *_size(model.network), "clip", tflop)


def _instructions(environment: Environment) -> list[str]:
    environment.reset(np.arange(NUM_INSTRUCTION_SCENES), render=False)
    return sorted(set(environment.instruction))


def _start(environment: Environment) -> StartState:
    frames = environment.reset([0])
    assert frames is not None
    return StartState(frames, environment.instruction[0], seed=0)


def _size(module: nn.Module) -> tuple[int, float]:
    """Parameters, and MiB of them."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters) / MIB


def _tflop(call: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 1e12


# -- actors and work ---------------------------------------------------------------------------------------------


def _actors(config: Config, policy: ModelCost, world: ModelCost, reward: ModelCost) -> tuple[ActorPlan, ...]:
    cluster, placement = config.cluster, config.placement
    verifier = (world,) if config.reward.verify.enabled else ()
    judges = (reward.name, *("second world model" for _ in verifier))
    judges_mib = sum(model.memory_mib for model in (reward, *verifier))
    imagination = (policy.name, world.name)
    learner_mib = TRAINING_COPIES * policy.memory_mib
    return (
        _actor(
            "imagination",
            cluster.imagination_actors,
            placement.imagination,
            imagination,
            policy.memory_mib + world.memory_mib,
        ),
        _actor("reward", cluster.reward_actors, placement.reward, judges, judges_mib),
        _actor("learner", 1, placement.learner, (f"{policy.name} in training",), learner_mib),
    )


def _actor(name: str, size: Size, place: RolePlacement, models: tuple[str, ...], memory_mib: float) -> ActorPlan:
    low, high = bounds(size)
    return ActorPlan(name, low, high, place.cpus, place.gpus, place.accelerator_type, place.labels, models, memory_mib)


def _work(config: Config, policy: ModelCost, world: ModelCost, reward: ModelCost) -> tuple[Work, ...]:
    horizon, num_chunks = config.environment.horizon, config.num_chunks
    trajectories = config.rollout.group_size * config.rollout.groups_per_update
    decisions, frames = trajectories * num_chunks, trajectories * horizon
    clips = trajectories * (horizon + 2 - config.reward.clip_length)
    trained = decisions * config.grpo.num_epochs
    work = [
        Work("act", decisions, "policy decisions", decisions * policy.tflop),
        Work("imagine", frames, "imagined frames", trajectories * num_chunks * world.tflop),
        Work("judge", clips, "clips scored", clips * reward.tflop),
    ]
    if config.reward.verify.enabled:
        work.append(Work("verify", frames, "frames, if all succeed", trajectories * num_chunks * world.tflop))
    work.append(Work("learn", trained, "decisions trained", BACKWARD_FACTOR * trained * policy.tflop))
    return tuple(work)
