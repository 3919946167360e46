"""A small run of the stages that record and evaluate, and workers that fail where they are told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from actors.recording_actor import Acting, EpisodeBatch, RecordingActor
from cluster.recording import recorder
from cluster.recording.recorder import EpisodeRecorder
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import ActorLostError, Answer, Runtime
from cluster.runtimes.serial_runtime import LocalRef, SerialRuntime
from tests.support.sabotage import Plan
from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Decision
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.rollout.evaluation import rollout_batch
from wmpo_ray.runs.folder import RunFolder

RECORDED = {
    **SETTINGS,
    "environment": {"horizon": 24},
    "demos": {"num_trajectories": 11, "episodes_per_batch": 3},
    "collect": {"num_trajectories": 10, "episodes_per_batch": 4},
    "gate": {"num_trajectories": 6},
    "evaluation": {"num_starts": 14, "episodes_per_batch": 3},
    "faults": {"backoff_s": 0.001},
}
FILES = ("trajectories", "outcomes", "videos")  # folders that recordings leave
STAGES = ("demos", "collect", "evaluate")


def recording_config(**cluster: Any) -> Config:
    return Config.model_validate({**RECORDED, "cluster": cluster})


RECORDING = recording_config()


def begin(path: Path) -> Path:
    """A run whose policies are there."""
    with RunFolder.open(path, RECORDING) as folder:
        save_policies(folder.models, RECORDING)
    return path


def recorded(path: Path) -> dict[str, bytes]:
    """What the stages have left, by name."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for name in FILES
        for file in (path / name).rglob("*")
        if file.is_file()
    }


def save_policies(models: Path, config: Config) -> None:
    """Untrained ones, which differ."""
    for seed, name in enumerate(("base-policy", "policy")):
        torch.manual_seed(seed)
        settings = TinyPolicyHFConfig(**config.policy.network.model_dump(), vocabulary=vocabulary_of(INSTRUCTIONS))
        TinyPolicy(settings).save_pretrained(models / name)


class ShuffledRuntime(SerialRuntime):
    """Several workers in one process: calls run in a random order, and some answers are lost with their worker."""

    def __init__(self, seed: int, share_lost: float = 0.0):
        super().__init__()
        self._random, self._share_lost = Random(seed), share_lost
        self._requests: set[LocalRef] = set()
        self.num_lost = self.num_open = self.most_open = self.num_spawned = 0

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        self.num_spawned += 1
        return super().spawn(cls, *args, resources=resources, name=name)

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        ref = super().call(actor, method, *args, num_returns=num_returns)
        self._requests.add(ref)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        return ref

    def wait(self, refs: list[LocalRef], timeout_s: float | None = None) -> list[LocalRef]:
        calls = list(self._calls)
        self._random.shuffle(calls)
        self._calls.clear()
        self._calls.extend(calls)
        return super().wait(refs, timeout_s)

    def answer(self, ref: LocalRef) -> Answer:
        if ref in self._requests:
            self.num_open -= 1
            if self._random.random() < self._share_lost:
                self.num_lost += 1
                raise ActorLostError("worker [17] died")
        return super().answer(ref)


class NotingRuntime(SerialRuntime):
    """Keeps the arguments of all calls of a method."""

    def __init__(self, method: str):
        super().__init__()
        self._method = method
        self.noted: list[tuple[Any, ...]] = []

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        if method == self._method:
            self.noted.append(args)
        return super().call(actor, method, *args, num_returns=num_returns)


class HalfSkilled:
    """Acts like the expert in every second scene and stands still in the others."""

    chunk_length, action_dim = 2, 3

    def __init__(self, environment: Any):
        self.environment = environment

    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        actions = self.environment.expert_action(np.random.default_rng(0), 0.0)
        actions[::2] = 0.0
        return Decision(torch.from_numpy(actions)[:, None].repeat(1, 2, 1).float(), {}, torch.zeros(len(actions), 1))


class HalfSkilledRecorder(RecordingActor):
    """Lets `HalfSkilled` act whichever policy is asked for."""

    def _episodes(self, batch: EpisodeBatch, acting: Acting, keep_frames: bool) -> Episodes:
        policy: Any = HalfSkilled(self.environment)
        return rollout_batch(policy, self._world, batch.seeds, acting.temperature, batch.run_key, keep_frames)


def faulty_recorder(plan: Plan) -> type:
    """Notes every batch that it has made; reaches the points `METHOD-SEED` before, and `METHOD-SEED-done` after a batch, by the seed of its first start."""

    class FaultyRecorder(RecordingActor):
        def demonstrate(self, batch, *args):
            return self._around("demonstrate", batch, lambda: super(FaultyRecorder, self).demonstrate(batch, *args))

        def record(self, batch, *args):
            return self._around("record", batch, lambda: super(FaultyRecorder, self).record(batch, *args))

        def evaluate(self, batch, *args):
            return self._around("evaluate", batch, lambda: super(FaultyRecorder, self).evaluate(batch, *args))

        def _around(self, method: str, batch: Any, work: Callable[[], Any]) -> Any:
            point = f"{method}-{batch.seeds[0]}"
            plan.reached(point)
            result = work()
            with open(plan.folder / "note-batches", "a") as file:
                file.write(f"{point}\n")
            plan.reached(f"{point}-done")
            return result

    return FaultyRecorder


def batches_made(plan: Plan) -> list[str]:
    return (plan.folder / "note-batches").read_text().splitlines()


def on_workers(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, num: int, cls: type | None = None) -> None:
    """Let stages record on so many workers of this runtime."""

    def place(self, config, root, stage, reporter, _runtime, meter):
        original(self, config, root, stage, reporter, lambda: runtime, meter)
        start = self.pool._start
        self.pool._start = lambda: (runtime, start()[1], num)

    original = EpisodeRecorder.__init__
    monkeypatch.setattr(EpisodeRecorder, "__init__", place)
    if cls is not None:
        monkeypatch.setattr(recorder, "RecordingActor", cls)
