"""Spare processes: on every node some wait with all libraries imported, and the next actor placed there begins in one.

A spare is a worker of Ray that was started ahead of need and runs nothing. Ray's scheduler gives it to the next actor
with the same runtime environment, wherever that actor's bundle lies. So a spare needs no resources and no role, is no
actor until then, and ends with the job.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.host.ray_private import NodeManager, RpcError, export_setup_hook, has_setup_hook
from cluster.runtimes.preload import MODELS, MODULES, preload
from wmpo_ray.config.roles import ROLES, roles_of, rollout_role
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_write
from wmpo_ray.kinds import POLICIES, REWARD_MODELS, WORLD_MODELS

PERIOD_S = 1.0  # between two looks at every node
ANSWER_S = 5.0  # an actor that does not answer for so long is not the one to ask
START_S = 120.0  # a spare that was asked for and has not registered after so long is asked for again
KEEP_S = 7 * 24 * 3600  # Ray ends workers that are idle for longer
MODELS_FILE = "spare-models.json"


def libraries_of(config: Config) -> list[str]:
    """Modules that the actors of a run import before they can serve."""
    actors = [role.actor.partition(":")[0] for role in roles_of(config)]
    kinds = [POLICIES.find(config.policy.kind), WORLD_MODELS.find(config.world_model.kind)]
    kinds.append(REWARD_MODELS.find(config.reward.kind))
    # Packages of others need not say what they import.
    return [*actors, *(name for kind in kinds for name in getattr(kind, "libraries", ()))]


def models_of(config: Config, folders: Mapping[str, str]) -> str:
    """What `preload` loads, if `cluster.spares_load_models` asks for it: the models of actors that make rollouts.

    folders: by the names of models. A spare does not know its GPU, so for actors that have one it only reads the files.
    """
    role = ROLES[rollout_role(config)]
    needless = () if config.judges_while_imagining else ("reward_model", "verifier")
    wanted = {name: folders[name] for name in role.models if name in folders and name not in needless}
    if not config.cluster.spares_load_models or not wanted:
        return ""
    build = config.cluster.device != "cuda" and role.placement(config).gpus == 0
    return json.dumps({"config": config.model_dump(mode="json"), "folders": wanted, "build": build})


def make_spares(config: Config, folders: Mapping[str, str] | None = None) -> Spares | None:
    """The spares of a run; None where it has none, or where its job says itself what a worker does first.

    folders: of its models, by their names in `Role.models`.
    """
    if not config.cluster.spares or has_setup_hook():
        return None
    if not folders or not (models := models_of(config, folders)):
        return Spares(config.cluster.spares, libraries_of(config))
    # Beside the checkpoints: nodes that can read the models can read that too.
    return Spares(
        config.cluster.spares, libraries_of(config), models, Path(folders["checkpoints"]).parent / MODELS_FILE
    )


class Spares:
    """Keeps `per_node` spares on every node, from a thread of its own: no answer of a node may hold up the run.

    models: what `models_of` gives; `path`: where spares find it, while there are any.
    """

    THREAD = "spares"

    def __init__(self, per_node: int, libraries: Sequence[str], models: str = "", path: Path | None = None):
        variables = {**export_setup_hook(preload), MODULES: ",".join(libraries)}
        self.runtime_env = {"env_vars": variables | ({MODELS: str(path.absolute())} if path is not None else {})}
        self._models, self._path = models, path
        self._per_node = per_node
        self._job = bytes.fromhex(ray.get_runtime_context().get_job_id())
        self._ask: Callable[[], Any] | None = None
        self._nodes: dict[str, _Node] = {}
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, ask: Callable[[], Any]) -> None:
        """An actor was started with `runtime_env`; `ask` gives a reference to that as the actor's raylet writes it."""
        self._ask = ask

    def begin(self) -> None:
        """Start spares. Called once actors serve: until then the processors have better things to do."""
        if self._thread is None and not self._is_over.is_set():
            if self._path is not None:
                atomic_write(self._path, self._models)
            self._thread = threading.Thread(target=self._tend, name=self.THREAD, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Start no more; those that wait end with the job."""
        self._is_over.set()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._thread is not None:
            self._thread.join(ANSWER_S)  # it may be waiting for a head that is away

    def _tend(self) -> None:
        runtime_env = ""
        while not self._is_over.wait(PERIOD_S):
            runtime_env = runtime_env or self._read_runtime_env()
            if runtime_env:
                self._look(runtime_env)
        for node in self._nodes.values():
            node.manager.close()

    def _look(self, runtime_env: str) -> None:
        try:
            nodes = _living_nodes()
        except (RayError, RuntimeError):
            return  # the head is away, and nothing can be placed without it
        for name in self._nodes.keys() - nodes.keys():
            self._nodes.pop(name).manager.close()
        for name, address in nodes.items():
            node = self._nodes.get(name) or self._nodes.setdefault(name, _Node(NodeManager(address)))
            try:
                node.fill(self._job, runtime_env, self._per_node)
            except RpcError:
                continue  # it is going, or busy: the next look will show

    def _read_runtime_env(self) -> str:
        """Empty while no actor answers."""
        try:
            return ray.get(self._ask(), timeout=ANSWER_S) if self._ask is not None else ""
        except RayError:
            return ""


class _Node:
    def __init__(self, manager: NodeManager):
        self.manager = manager
        self._seen: set[int] = set()  # process ids of spares
        self._asked: list[float] = []  # times at which those were asked for that have not been seen yet

    def fill(self, job: bytes, runtime_env: str, wanted: int) -> None:
        now, idle = time.monotonic(), set(self.manager.idle_workers(job))
        new = len(idle - self._seen)
        self._seen |= idle
        self._asked = [asked for asked in self._asked[new:] if now - asked < START_S]
        missing = wanted - len(idle) - len(self._asked)
        if missing > 0:
            self._asked += [now] * missing  # first: a raylet that answers too late does it all the same
            self.manager.start_workers(job, runtime_env, missing, KEEP_S)


def _living_nodes() -> dict[str, str]:
    """Node -> host:port of its manager."""
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()
        if node["Alive"]
    }
