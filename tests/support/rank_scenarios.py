"""What the tests of a learner in several processes run in each of them, and the processes themselves."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from actors.broadcast_group import open_store
from learners.policy_learner import PolicyLearner
from learners.sharding import ALONE, Ranks, RankSpec
from tests.support.openvla import small_policy
from tests.support.sampling import sampled_trajectories
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.core.types import Trajectories
from wmpo_ray.policies.weight_payload import values_of

TIMEOUT_S = 300.0  # on a machine that is busy
NUM_CHUNKS, GROUP = 2, 4
TEXTS = ("push the blue block", "pull the pink block slowly")
FACTS = UpdateFacts({}, [(0, 0), (0, 1)], 7)


def run_on_ranks(size: int, scenario: Callable[..., Any], *args: Any) -> list[Any]:
    """What `scenario(ranks, *args)` gives in each of `size` processes; None for one that ended itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the imports take longer than everything else
    store, port = open_store("127.0.0.1")
    started = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        spec = RankSpec(rank, size, "127.0.0.1", port, TIMEOUT_S)
        process = context.Process(target=_run, args=(theirs, spec, scenario, args), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    answers = []
    for process, ours in started:
        try:
            assert ours.poll(TIMEOUT_S), "a rank does not answer"
            answers.append(ours.recv())
        except EOFError:
            answers.append(None)
        process.join(TIMEOUT_S)
    del store
    if all(isinstance(answer, Exception) for answer in answers):
        raise answers[0]
    return answers


def _run(pipe: Any, spec: RankSpec, scenario: Callable[..., Any], args: tuple) -> None:
    ranks = Ranks.join(spec, torch.device("cpu"))
    try:
        pipe.send(scenario(ranks, *args))
    except Exception as error:  # noqa: BLE001  for the test to look at
        pipe.send(error)
    pipe.close()
    os._exit(0)  # the others may be gone: nothing to take leave of


# -- a small OpenVLA-OFT and what it learns from -----------------------------------------------------------------------


def config_for(policy_dir: Path, openvla: dict[str, Any] | None = None, **grpo: Any) -> Config:
    settings = {
        "policy": {
            "kind": "openvla_oft",
            "pretrained": str(policy_dir),
            "openvla": {"image_steps": "resize", "unnorm_key": "coffee", "compute_dtype": "float32", **(openvla or {})},
        },
        "environment": {"horizon": NUM_CHUNKS * 4},
        "rollout": {"group_size": GROUP, "groups_per_update": 2},
        "grpo": {"num_updates": 3, "minibatch_trajectories": GROUP, "learning_rate": 1e-4, **grpo},
    }
    return Config.model_validate(settings)


def sample(seed: int = 0, num: int = 2 * GROUP) -> Trajectories:
    """Trajectories as the policy with fresh weights would act, on random frames."""
    policy = small_policy(num_actions_chunk=4)
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (num, NUM_CHUNKS, 28, 28, 3)).astype(np.uint8)
    texts = tuple(TEXTS[i % 2] for i in range(num))
    return sampled_trajectories(policy, frames, texts)


def groups() -> list[GroupSlice]:
    """Trajectories that end at different steps: 7 chunks are decided in each mini-batch, which no two ranks halve."""
    success = np.array([True, False, False, True])
    finish = np.array([3, 8, 8, 8])
    return [GroupSlice(((0, (i * GROUP, (i + 1) * GROUP)),), success, finish) for i in range(2)]


# -- scenarios ---------------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """What a rank has to tell of a training."""

    digests: list[str]  # before the first update and after each; "" for those that do not encode
    metrics: list[dict[str, float]]
    weights: dict[str, np.ndarray]  # at the end, as bits
    state_bytes: int  # of the optimizer, held by this process
    num_updates: int
    num_units: int  # modules whose weights are gathered together


def make_learner(ranks: Ranks, config: Config, policy_dir: Path, folder: Path) -> PolicyLearner:
    learner = PolicyLearner(config, str(policy_dir), str(folder), ranks)
    # What a learner sets lets a CPU multiply in bfloat16 for some sizes of a batch and not for others.
    torch.set_float32_matmul_precision("highest")
    return learner


def train(ranks: Ranks, config: Config, policy_dir: Path, folder: Path, num_updates: int = 2, die: int = -1) -> Course:
    """Updates until `num_updates` are made, from a checkpoint if there is one; the last rank may die at some step."""
    learner = make_learner(ranks, config, policy_dir, folder)
    digests, metrics, step = [learner.resume().version.digest], [], learner.take_step

    def last_step(minibatch):
        if learner.num_beats == die and ranks.rank == ranks.size - 1:
            os._exit(1)
        return step(minibatch)

    learner.take_step = last_step  # type: ignore[method-assign]
    while learner.num_updates < num_updates:
        result, *_ = learner.update(groups(), FACTS, sample(learner.num_updates))
        digests.append(result.version.digest)
        metrics.append(result.metrics)
    payload = learner.weights(learner.num_updates)[1]
    weights = (
        {
            name: values_of(tensor.bits, tensor.dtype).view(tensor.shape).numpy()
            for name, tensor in payload.tensors.items()
        }
        if payload
        else {}
    )
    held = sum(
        (value.to_local() if isinstance(value, DTensor) else value).nbytes
        for state in learner.optimizer.state.values()
        for value in state.values()
    )
    num_units = sum(isinstance(module, FSDPModule) for module in learner.policy.modules())
    return Course(digests, metrics, weights, held, learner.num_updates, num_units)


def train_on_episodes(ranks: Ranks, config: Config, policy_dir: Path, folder: Path, episodes: Path) -> Course:
    """Two updates of an offline algorithm."""
    learner = make_learner(ranks, config, policy_dir, folder)
    digests = [learner.resume(str(episodes)).version.digest]
    results = [learner.update_recorded() for _ in range(2)]
    digests += [result.version.digest for result in results]
    payload = learner.weights(2)[1]
    tensors = payload.tensors.items() if payload else ()
    weights = {name: values_of(tensor.bits, tensor.dtype).view(tensor.shape).numpy() for name, tensor in tensors}
    return Course(digests, [result.metrics for result in results], weights, 0, learner.num_updates, 0)


def train_and_export(ranks: Ranks, config: Config, policy_dir: Path, folder: Path) -> Course:
    course = train(ranks, config, policy_dir, folder, num_updates=1)
    learner = make_learner(ranks, config, policy_dir, folder)
    learner.resume()
    learner.save_policy(str(folder / "policy"))
    return course


def train_alone(config: Config, policy_dir: Path, folder: Path, num_updates: int = 2) -> Course:
    return train(ALONE, config, policy_dir, folder, num_updates)


def train_in_parts(ranks: Ranks, config: Config, policy_dir: Path, folder: Path, cut: int) -> Course:
    """Two updates, whose first `cut` groups come before the others."""
    learner = make_learner(ranks, config, policy_dir, folder)
    digests, metrics = [learner.resume().version.digest], []
    for update in range(2):
        data = sample(update)
        if cut:
            learner.update_part(update, 0, groups()[:cut], data)
            learner.step_weights()
        result, *_ = learner.update(groups()[cut:], FACTS._replace(num_given=cut), data)
        digests.append(result.version.digest)
        metrics.append(result.metrics)
    return Course(digests, metrics, {}, 0, learner.num_updates, 0)
