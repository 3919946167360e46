"""What a configuration would run: which actor holds which models, how much work an update is. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wmpo_ray.config.cluster import RolePlacement, Size, bounds
from wmpo_ray.config.run import Config
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.costs import (
    PolicyCost,
    RewardModelCost,
    WorldModelCost,
    policy_cost,
    reward_model_cost,
    world_model_cost,
)
from wmpo_ray.planning.memory import RoleMemory, imagination_memory, learner_memory, reward_memory
from wmpo_ray.planning.update_time import StepTimes

GPU_TFLOPS = 400.0  # of one GPU, effective: what dense bfloat16 work reaches on cards of 141 GB


@dataclass(frozen=True)
class ModelPlan:
    """One model; `costs` are (TFLOP, what of) and `source` says where its sizes come from."""

    name: str
    source: str
    num_parameters: int
    costs: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class ActorPlan:
    """`min_count` to `count` processes with `cpus` and `gpus` each, on nodes with that accelerator and those labels.

    `memory` is that of one of them.
    """

    name: str
    min_count: int
    count: int
    cpus: float
    gpus: float
    accelerator_type: str  # "": any
    labels: tuple[str, ...]
    models: tuple[str, ...]
    memory: RoleMemory
    workers: float  # GPUs of all processes together (whole ones where roles take turns), processes where they have none


@dataclass(frozen=True)
class Work:
    """At most so much of it in one update: trajectories of their full length, and no group rejected."""

    name: str
    role: str  # who does it
    amount: int
    unit: str
    tflop: float


@dataclass(frozen=True)
class Plan:
    actors: tuple[ActorPlan, ...]
    models: tuple[ModelPlan, ...]
    work: tuple[Work, ...]
    num_frames: int  # imagined in one update
    num_trajectories: int  # of one update
    group_size: int
    overlapping: bool  # the learner trains while the next update is imagined
    collocated: bool  # the roles take turns on the same GPUs
    real_budget: int  # real trajectories that the method may use: P
    real_demos: int
    num_slots: int  # groups that may be in flight or waiting at once
    video_bytes: float  # frames of one request on their way to a reward actor
    batch_bytes: float  # what the learner is given for one update

    @property
    def tflop(self) -> float:
        """Of one update."""
        return sum(item.tflop for item in self.work)

    def role_seconds(self, tflops: float) -> dict[str, float]:
        """Role -> seconds of one update, if a GPU (a process, for a role without) does so many TFLOP a second."""
        return {
            actor.name: sum(item.tflop for item in self.work if item.role == actor.name) / (tflops * actor.workers)
            for actor in self.actors
        }

    def step_times(self, tflops: float) -> StepTimes:
        """Of one trajectory, one group's judgement and a whole update, if a GPU (a process) does so many TFLOP a second.

        Weights on their way are not counted.
        """
        seconds = self.role_seconds(tflops)
        workers = {actor.name: actor.workers for actor in self.actors}

        def alone(role: str, amount: float) -> float:
            return seconds.get(role, 0.0) * workers.get(role, 0.0) / amount

        groups = self.num_trajectories / self.group_size
        return StepTimes(
            alone("imagination", self.num_trajectories), alone("reward", groups), seconds.get("learner", 0.0)
        )

    def update_seconds(self, tflops: float) -> float:
        """Videos are judged while others are imagined; with staleness the learner works beside both, else after them.

        Roles that share their GPUs always work one after the other.
        """
        seconds = self.role_seconds(tflops)
        if self.collocated:
            return sum(seconds.values())
        imagined = max(seconds.get("imagination", 0.0), seconds.get("reward", 0.0))
        return max(imagined, seconds["learner"]) if self.overlapping else imagined + seconds["learner"]


def make_plan(config: Config) -> Plan:
    """Count without building anything. Raises UserError where a pretrained model is missing and cannot be guessed."""
    facts = environment_facts(config.environment)
    policy = policy_cost(config, facts)
    world = world_model_cost(config, facts, config.world_model.pretrained)
    verify = config.reward.verify
    verifier = world_model_cost(config, facts, verify.pretrained) if verify.enabled else None
    reward = reward_model_cost(config, facts)
    rollout = config.rollout
    frame_bytes = int(np.prod(facts.frame_shape))
    num_values = rollout.chunk_length * facts.action_dim
    sample_bytes = policy.sample_bytes or num_values * (8 + 4)  # tokens int64, log-probabilities float32
    decision_bytes = frame_bytes + num_values * 4 + sample_bytes  # actions float32
    num_trajectories = config.trajectories_per_update
    request = rollout.request_size
    return Plan(
        actors=_actors(config, policy, world, reward, verifier),
        models=_models(policy, world, reward, verifier),
        work=_work(config, policy, world, reward, verifier),
        num_frames=num_trajectories * config.rollout_horizon,
        num_trajectories=num_trajectories,
        group_size=rollout.group_size,
        overlapping=config.max_staleness > 0,
        collocated=_is_collocated(config),
        real_budget=config.collect.num_trajectories,
        real_demos=config.demos.num_trajectories,
        num_slots=(config.max_staleness + 1) * rollout.groups_per_update,
        video_bytes=request * (config.rollout_horizon + 1) * frame_bytes,
        batch_bytes=num_trajectories * config.num_decisions * decision_bytes,
    )


# -- models and actors -------------------------------------------------------------------------------------------


def _models(
    policy: PolicyCost, world: WorldModelCost | None, reward: RewardModelCost, verifier: WorldModelCost | None
) -> tuple[ModelPlan, ...]:
    costs = ((policy.tflop, "decision"), (policy.training_tflop, "decision trained"))
    models = [ModelPlan("policy", policy.source, policy.num_parameters, costs), _world_model("world model", world)]
    if verifier is not None:
        models.append(_world_model("second world model", verifier))
    models.append(ModelPlan("reward model", reward.source, reward.num_parameters, ((reward.tflop, "clip"),)))
    return tuple(models)


def _world_model(name: str, world: WorldModelCost | None) -> ModelPlan:
    if world is None:
        return ModelPlan(f"{name} (simulator)", "no weights", 0, ())
    steps = world.num_evaluations
    costs = [(world.condition_tflop, "chunk, conditioning"), (world.step_tflop, f"evaluation, {steps} a chunk")]
    if world.num_codec_parameters:
        costs.append((world.decode_tflop, "frame decoded"))
    return ModelPlan(name, world.source, world.num_parameters + world.num_codec_parameters, tuple(costs))


def _actors(
    config: Config,
    policy: PolicyCost,
    world: WorldModelCost | None,
    reward: RewardModelCost,
    verifier: WorldModelCost | None,
) -> tuple[ActorPlan, ...]:
    cluster, place = config.cluster, config.placement
    judges = ("reward model", *("second world model" for _ in [verifier] if verifier))
    worker = imagination_memory(config, policy, world)
    judge = reward_memory(config, reward, verifier)
    if config.judges_while_imagining:
        worker = RoleMemory(worker.role, (*worker.parts, *judge.parts))
    learner = learner_memory(config, policy)
    learning = _actor(config, place.learner, cluster.learner_ranks, ("policy in training",), learner)
    if config.training.source == "offline":
        return (learning,)
    models = ("policy", "world model")
    if config.judges_while_imagining:
        return _actor(config, place.imagination, cluster.imagination_actors, (*models, *judges), worker), learning
    return (
        _actor(config, place.imagination, cluster.imagination_actors, models, worker),
        _actor(config, place.reward, cluster.reward_actors, judges, judge),
        learning,
    )


def _actor(config: Config, place: RolePlacement, size: Size, models: tuple[str, ...], memory: RoleMemory) -> ActorPlan:
    low, high = bounds(size)
    share = 1.0 if _is_collocated(config) else place.gpus or 1.0
    asked = (place.cpus, place.gpus, place.accelerator_type, place.labels)
    return ActorPlan(memory.role, low, high, *asked, models, memory, high * share)


def _is_collocated(config: Config) -> bool:
    return config.placement.layout == "collocated" and config.placement.imagination.gpus > 0


# -- work --------------------------------------------------------------------------------------------------------


def _work(
    config: Config,
    policy: PolicyCost,
    world: WorldModelCost | None,
    reward: RewardModelCost,
    verifier: WorldModelCost | None,
) -> tuple[Work, ...]:
    trajectories = config.trajectories_per_update
    decisions = trajectories * config.num_chunks
    if config.training.source == "offline":
        return (_learning(config, policy, trajectories * config.num_decisions),)
    clips = trajectories * (config.rollout_horizon + 2 - config.reward.clip_length)
    judge = "imagination" if config.judges_while_imagining else "reward"
    work = [
        Work("act", "imagination", decisions, "policy decisions", decisions * policy.tflop),
        *_imagining(config, world, trajectories),
        Work("judge", judge, clips, "clips scored", clips * reward.tflop),
    ]
    if verifier is not None:
        again = sum(item.tflop for item in _imagining(config, verifier, trajectories)) + clips * reward.tflop
        work.append(Work("verify", judge, trajectories, "successes, if all are", again))
    return (*work, _learning(config, policy, decisions))


def _imagining(config: Config, world: WorldModelCost | None, trajectories: int) -> list[Work]:
    chunks, frames = trajectories * config.num_chunks, trajectories * config.rollout_horizon
    if world is None:
        return [Work("simulate", "imagination", frames, "frames", 0.0)]
    starts = trajectories * world.context_frames
    work = [
        Work("encode", "imagination", starts, "start frames", starts * world.encode_tflop),
        Work("denoise", "imagination", chunks, "chunks imagined", chunks * world.denoise_tflop),
        Work("decode", "imagination", frames, "frames decoded", frames * world.decode_tflop),
    ]
    return [item for item in work if item.tflop]


def _learning(config: Config, policy: PolicyCost, decisions: int) -> Work:
    """Every epoch forward and backward, and once forward over a mini-batch: are its log-probabilities as they were?"""
    trained = decisions * config.training.num_epochs
    compared = min(config.training.minibatch_trajectories * config.num_decisions, decisions)
    tflop = trained * policy.training_tflop + compared * policy.tflop
    return Work("learn", "learner", trained, "decisions trained", tflop)
