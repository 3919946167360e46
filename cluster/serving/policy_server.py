"""A policy server as a whole: replicas, services, doors, and new weights as a run makes them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from actors.serving_actor import Acted, ServingActor
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.serving.locked_server import Bounds, Lock, add_health_and_reflection, make_server, open_door
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.remote.act_batcher import ActBatcher
from wmpo_ray.remote.episode_service import add_episodes
from wmpo_ray.remote.policy_service import POLICY_SERVICE, PolicyFacts, PolicyService
from wmpo_ray.remote.robot_episodes import EpisodeFolder
from wmpo_ray.remote.served_weights import Weights
from wmpo_ray.remote.serving_metrics import ServingMetrics


class ServingReplica(Protocol):
    async def act(self, observation: Observation, seeds: list[int]) -> Acted: ...

    async def load(self, weights: Weights) -> WeightVersion: ...

    async def version(self) -> WeightVersion: ...


class LocalReplica:
    """In a thread of this process. It takes new weights between two batches: loading changes settings of the whole process,
    such as the default dtype, so nothing may be computed beside it. Two replicas never load at the same time.
    """

    def __init__(self, config: Config, weights: Weights, temperature: float):
        self._thread = ThreadPoolExecutor(1, "policy")
        self._actor = self._thread.submit(ServingActor, config, weights, temperature).result()

    async def act(self, observation: Observation, seeds: list[int]) -> Acted:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._actor.act, observation, seeds)

    async def load(self, weights: Weights) -> WeightVersion:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._actor.load, weights)

    async def version(self) -> WeightVersion:
        return self._actor.version()


class RayReplica:
    """In a process of its own, which Ray has placed."""

    def __init__(self, config: Config, weights: Weights, temperature: float):
        import ray

        device = {"num_gpus": 1} if config.cluster.device.startswith("cuda") else {}
        options = {"num_cpus": 1, "max_restarts": -1, **device}
        self._actor = cast(Any, ray.remote(ServingActor)).options(**options).remote(config, weights, temperature)

    async def act(self, observation: Observation, seeds: list[int]) -> Acted:
        return await self._actor.act.remote(observation, seeds)

    async def load(self, weights: Weights) -> WeightVersion:
        return await self._actor.load.remote(weights)

    async def version(self) -> WeightVersion:
        return await self._actor.version.remote()


@dataclass(frozen=True)
class ServingOptions:
    listen: str
    lock: Lock
    temperature: float
    num_replicas: int = 1
    bounds: Bounds = field(default_factory=Bounds)
    watch_s: float = 2.0
    max_batch: int = 64
    max_wait_s: float = 0.005
    openpi: str = ""  # HOST:PORT for openpi's protocol; empty: it is not spoken


class PolicyServer:
    """`find` names the weights to act with; with `watch`, it is asked again every `watch_s`.

    Raises UserError for weights that cannot be loaded, ClientError for an address that cannot be listened on.
    """

    def __init__(self, config: Config, find: Callable[[], Weights], options: ServingOptions):
        self.config, self.find, self.options = config, find, options
        self.metrics, self.port, self.openpi_port = ServingMetrics(), 0, 0
        self.openpi: Any = None
        self._weights = find()
        self._state = self._weights.state
        # One replica is this process: it has no second copy to keep, and asks no scheduler.
        kind = LocalReplica if options.num_replicas == 1 else RayReplica
        self.replicas: list[ServingReplica] = [
            kind(config, self._weights, options.temperature) for _ in range(options.num_replicas)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *add: Callable[[Any], str]) -> None:
        """Listen. add: services beside the policy, each put on a server and named."""
        options = self.options
        version = await self.replicas[0].version()
        facts = environment_facts(self.config.environment)
        self.batcher = ActBatcher(self.replicas, options.max_batch, options.max_wait_s)
        self.service = PolicyService(
            PolicyFacts(
                facts.frame_shape,
                self.config.rollout.chunk_length,
                facts.action_dim,
                facts.instructions,
                self.config.seed,
                options.bounds.message_bytes,
            ),
            self.batcher,
            version,
            self.metrics,
        )
        self.metrics.updates.set(version.num_updates)
        self.server = make_server(options.lock, options.bounds, self.metrics.refused)
        rpc.add_PolicyServicer_to_server(self.service, self.server)
        names = [POLICY_SERVICE, *(each(self.server) for each in add)]
        await add_health_and_reflection(self.server, names)
        self.port = open_door(self.server, options.listen, options.lock)
        await self.server.start()
        self.batcher.start()
        if options.openpi:
            self.openpi = make_openpi_server(self.service, options, self.metrics)
            self.openpi_port = await self.openpi.start(options.openpi)

    def watch(self, report: Callable[[str], None]) -> None:
        """From now on take new weights as they come."""
        self._tasks.append(asyncio.create_task(self._watch(report)))

    async def _watch(self, report: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(self.options.watch_s)
            try:
                await self.look_for_weights(report)
            except (UserError, OSError) as error:  # half written, or being replaced: looked at again
                report(f"new weights are not taken: {error}")

    async def look_for_weights(self, report: Callable[[str], None]) -> bool:
        """Take the newest weights, replica after replica; whether there were new ones.

        A policy that a run ended with is kept until there is another such one: a run that is redone begins with less.
        """
        found = await asyncio.to_thread(self.find)
        if found.state == self._state or (self._weights.is_final and not found.is_final):
            return False
        state = found.state
        for number, replica in enumerate(self.replicas):
            async with self.batcher.resting(number):
                self.service.version = await replica.load(found)
        self._weights, self._state = found, state
        self.metrics.swaps.inc()
        self.metrics.updates.set(found.num_updates)
        report(f"acting with update {found.num_updates} ({self.service.version.digest})")
        return True

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.openpi is not None:
            await self.openpi.stop()
        await self.server.stop(1.0)
        await self.batcher.stop()


def make_openpi_server(service: PolicyService, options: ServingOptions, metrics: ServingMetrics) -> Any:
    """Raises UserError where its library is not installed."""
    try:
        from wmpo_ray.remote.openpi_server import OpenpiServer
    except ImportError as error:
        raise UserError(f"--openpi needs {error.name}: pip install 'wmpo-ray[robot]'") from error
    return OpenpiServer(service, options.lock, options.bounds, metrics.refused)


def serve_until_signal(
    server: PolicyServer, episodes: Path | None, watch: bool, metrics_port: int, report: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM. episodes: the folder that takes those of robots; None: they are not taken."""

    async def run() -> None:
        extra = [] if episodes is None else [add_episodes(EpisodeFolder(episodes), server.metrics)]
        await server.start(*extra)
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        if watch:
            server.watch(report)
        if metrics_port >= 0:
            report(f"metrics on http://127.0.0.1:{server.metrics.listen(metrics_port)}/metrics")
        if episodes is not None:
            report(f"episodes of robots go to {episodes}")
        version, host = server.service.version, server.options.listen.rpartition(":")[0]
        if server.openpi_port:
            report(f"openpi's clients are answered on {server.options.openpi.rpartition(':')[0]}:{server.openpi_port}")
        report(f"the policy (update {version.num_updates}, {version.digest}) listens on {host}:{server.port}")
        await ended.wait()
        await server.stop()

    asyncio.run(run())
