"""Episodes of the real environment, batch by batch on a pool of workers, kept as they come.

Each batch is written by its worker as a part of its own. Who goes on after an interruption makes the parts that are
missing. At the end the parts become one trajectory file, which has the bytes of one that was written at once, whatever
the number of workers and whoever was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from actors.recording_actor import Acting, EpisodeBatch, RecordingActor
from cluster.events.progress import Reporter
from cluster.recording.evaluation_parts import Evaluation
from cluster.recording.parts import Parts, parts_folder
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.environment_pool import Call, EnvironmentPool
from cluster.workers.telemetry import Telemetry
from wmpo_ray.config.cluster import bounds
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.files import sha256_of_folder
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes, Frames
from wmpo_ray.data.about import Provenance
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.rollout.evaluation import MOST_TOGETHER, recording_batch
from wmpo_ray.runs.live_metrics import Meter
from wmpo_ray.runs.outcomes import Outcomes, outcomes_file, read_outcomes

RunKey = tuple[int | str, ...]


class EpisodeRecorder:
    """Records and evaluates for one stage; leaving it stops the workers, which start with the first batch.

    `root` is the folder of the round, `runtime` and `meter` are asked for where workers have processes of their own.
    """

    def __init__(
        self,
        config: Config,
        root: Path,
        stage: str,
        reporter: Reporter,
        runtime: Callable[[], Runtime],
        meter: Callable[[], Meter],
    ):
        self.config, self.root, self.reporter = config, root, reporter
        most, is_apart = num_processes(config)

        def start() -> tuple[Runtime, Telemetry, int]:
            if not is_apart:
                return SerialRuntime(), Telemetry(), 1
            chosen = runtime()
            telemetry = Telemetry(meter() if config.monitoring.metrics else None)
            return chosen, telemetry, 1 if isinstance(chosen, SerialRuntime) else most

        self.pool = EnvironmentPool(config, start, RecordingActor, stage)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.stop()

    @property
    def num_restarts(self) -> int:
        """How many workers were lost and replaced."""
        return self.pool.num_restarts

    # -- trajectory files --------------------------------------------------------------------------------------------

    def record_expert(self, name: str, seeds: np.ndarray, run_key: RunKey, target: Path) -> None:
        """The environment's expert demonstrates from these start states."""
        wanted = self.config.demos.episodes_per_batch
        batches = batches_of(self.config, seeds, run_key, wanted, len(seeds))
        self._record(name, batches, "demonstrate", (), self._provenance("expert"), target)

    def record_policy(self, name: str, seeds: np.ndarray, run_key: RunKey, policy: Path, target: Path) -> None:
        """A saved policy rolls out in the environment from these start states, at `collect.temperature`."""
        collect = self.config.collect
        batches = batches_of(self.config, seeds, run_key, collect.episodes_per_batch)
        origin = self._provenance("policy", sha256_of_folder(policy))
        self._record(name, batches, "record", (Acting(str(policy), collect.temperature),), origin, target)

    def _provenance(self, made_by: str, policy_sha256: str = "") -> Provenance:
        """Without the versions, which the workers add."""
        environment = self.config.environment.model_dump(mode="json")
        return Provenance(origin="real", made_by=made_by, policy_sha256=policy_sha256, environment=environment)

    def _record(
        self,
        name: str,
        batches: Sequence[EpisodeBatch],
        method: str,
        args: tuple[Any, ...],
        provenance: Provenance,
        target: Path,
    ) -> None:
        """Make the parts that are missing, and one trajectory file of all."""
        parts = Parts(self.root / parts_folder(name))
        if parts.are_written and target.exists():
            return
        missing = [batch for batch in batches if not parts.has(batch, provenance)]
        total = num_episodes(batches)

        def calls() -> Iterator[Call]:
            for batch in missing:
                yield Call(batch.first, method, (batch, *args, str(parts.path(batch)), provenance), about(batch))

        with self.reporter.bar(f"real episodes ({name})", total) as advance:
            done = total - num_episodes(missing)
            advance(done)
            success: list[bool] = []
            for call, ended in self.pool.run(calls()):
                success += ended.success.tolist()
                advance(done + len(success), self._shown(success))
            parts.write(batches, target)

    # -- evaluations -------------------------------------------------------------------------------------------------

    def evaluate(self, label: str, policy: Path) -> tuple[Outcomes, Episodes | None]:
        """(outcomes from all held-out starts, videos) of a saved policy; None where an attempt before had saved both.

        The parts are kept until `finish_evaluation`.
        """
        parts, target = Parts(self.root / parts_folder(label)), outcomes_file(self.root, label)
        if parts.are_written and target.exists():
            return read_outcomes(target), None
        settings, run_key = self.config.evaluation, (self.config.seed, "evaluate")
        seeds = start_seeds("evaluate", settings.num_starts, self.config.seed)
        batches = batches_of(self.config, seeds, run_key, settings.episodes_per_batch)
        evaluation = Evaluation(self.config, policy, batches, parts)

        def calls() -> Iterator[Call]:
            for batch, videos in evaluation.missing():
                acting = Acting(str(policy), settings.temperature)
                yield Call(batch.first, "evaluate", (batch, acting, videos), about(batch))

        with self.reporter.bar(f"real episodes ({label})", len(seeds)) as advance:
            done = evaluation.num_done
            advance(done)
            success: list[bool] = []
            for call, ended in self.pool.run(calls()):
                evaluation.take(call.args[0], ended)
                success += ended.success.tolist()
                advance(done + len(success), self._shown(success))
        return evaluation.outcomes(), evaluation.videos()

    def finish_evaluation(self, label: str) -> None:
        """Outcomes and videos are saved: the parts are not needed any more."""
        Parts(self.root / parts_folder(label)).finish()

    def _shown(self, success: Sequence[bool]) -> dict[str, float]:
        """What a bar shows, of the episodes made here."""
        restarted = {"restarted": float(self.num_restarts)} if self.num_restarts else {}
        return {"success": float(np.mean(success)), **restarted}

    # -- for the gate ------------------------------------------------------------------------------------------------

    def execute(self, seeds: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Real outcome [M] bool of given actions [M, T, D] from the given start states."""
        batches = batches_of(self.config, seeds, (), 0)
        outcomes = np.zeros(len(seeds), bool)

        def calls() -> Iterator[Call]:
            for batch in batches:
                rows = slice(batch.first, batch.first + len(batch.seeds))
                yield Call(batch.first, "execute", (batch.seeds, actions[rows]), about(batch))

        for call, success in self.pool.run(calls()):
            outcomes[call.order : call.order + len(success)] = success
        return outcomes

    def disrupted_starts(self, seeds: np.ndarray, disruptions: Sequence[str]) -> np.ndarray:
        """First frames [D, M, H, W, 3] of the given start states under each disruption."""

        def calls() -> Iterator[Call]:
            for order, name in enumerate(disruptions):
                yield Call(order, "disrupted_starts", (seeds, name), f'start frames with the disruption "{name}"')

        found = {call.order: frames for call, frames in self.pool.run(calls())}
        return np.stack([found[order] for order in sorted(found)])

    @cached_property
    def abilities(self) -> frozenset[str]:
        """Of the environment, which only its workers need to know."""
        ((_, abilities),) = self.pool.run([Call(0, "abilities", (), "asking for the abilities of the environment")])
        return abilities

    def detect_events(self, videos: np.ndarray | Frames) -> dict[str, np.ndarray]:
        """Events that frames [M, T+1, H, W, 3] show, name -> [M] bool. Needs the ability "events"."""
        size = recording_batch(self.config.environment.horizon, videos.shape[2:], MOST_TOGETHER)

        def calls() -> Iterator[Call]:
            for first in range(0, len(videos), size):
                yield Call(
                    first, "detect_events", (videos[first : first + size],), f"the {size} videos from {first} on"
                )

        found = {call.order: events for call, events in self.pool.run(calls())}
        return {name: np.concatenate([found[first][name] for first in sorted(found)]) for name in found[0]}


def num_processes(config: Config) -> tuple[int, bool]:
    """(most environment workers, whether they have processes of their own)."""
    most = bounds(config.cluster.environment_actors)[1]
    return most, most > 1 or bool(config.cluster.environment_runtime_env.for_ray())


def check_runtime_env(config: Config, serial: bool) -> None:
    """Raises ConfigError for packages of environment workers that have no process of their own."""
    if serial and (own := config.cluster.environment_runtime_env.for_ray()):
        raise ConfigError(
            f"cluster.environment_runtime_env has {', '.join(own)}, and with --serial the environment is in this process; "
            "remove cluster.environment_runtime_env or leave out --serial"
        )


def batches_of(
    config: Config, seeds: np.ndarray, run_key: RunKey, wanted: int, most: int = MOST_TOGETHER
) -> list[EpisodeBatch]:
    """Batches of `wanted` start states, 0: of `most`; fewer where their frames would be more than a worker may hold."""
    shape = environment_facts(config.environment).frame_shape
    size = recording_batch(config.environment.horizon, shape, wanted or most)
    return [EpisodeBatch(first, seeds[first : first + size], run_key) for first in range(0, len(seeds), size)]


def num_episodes(batches: Sequence[EpisodeBatch]) -> int:
    return sum(len(batch.seeds) for batch in batches)


def about(batch: EpisodeBatch) -> str:
    return f"the batch of start states {batch.seeds[0]} to {batch.seeds[-1]}"
