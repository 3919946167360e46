"""A learner in several processes, one per GPU; the driver sees one actor.

That actor is rank 0 and starts the other ranks: Ray ends them with it. All ranks execute every call together. If a rank
is lost, the actor raises ActorLostError as if it had been lost itself, and the driver replaces the whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NoReturn

import ray
from ray.exceptions import RayTaskError

from actors.broadcast_group import open_store
from cluster.runtimes.ray_runtime import LOST
from cluster.runtimes.resources import Resources, ray_options
from cluster.runtimes.runtime import ActorLostError
from learners.sharding import Ranks, RankSpec
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.learner_types import LearnerState, StepFacts, UpdateResult
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_payload import WeightPayload

POLL_S = 0.5  # interval between checks of the other ranks
GRACE_S = 10.0  # time for the other ranks to notice a failure and report their errors


class LearnerGroup:
    """Has the methods of a learner of the class `cls`; every rank constructs one.

    Args:
        cls: constructed from a config, the folders of the policy and of the checkpoints, and `Ranks`
        places: resources of all ranks but the first
    """

    def __init__(self, config: Config, cls: type, policy_dir: str, checkpoint_dir: str, places: Sequence[Resources]):
        self._work = ThreadPoolExecutor(1, "rank-0")  # this thread watches the others meanwhile
        host = ray.util.get_node_ip_address()
        self._store, port = open_store(host)
        specs = [
            RankSpec(rank, len(places) + 1, host, port, config.faults.stall_timeout_s)
            for rank in range(len(places) + 1)
        ]
        process = ray.remote(_Rank)
        self._others = [process.options(max_restarts=0, **ray_options(place)).remote() for place in places]
        blueprint = (cls, config, policy_dir, checkpoint_dir)
        refs = [other.build.remote(blueprint, spec) for other, spec in zip(self._others, specs[1:], strict=True)]
        self._learner: Any = None
        self._learner = self._together(refs, lambda: _make(blueprint, specs[0]))

    @property
    def num_beats(self) -> int:
        return self._learner.num_beats

    def resume(self, *args: Any) -> LearnerState:
        return self._all("resume", *args)

    def weights(self, num_updates: int) -> tuple[WeightVersion, WeightPayload]:
        return self._all("weights", num_updates)

    def update(self, *args: Any) -> tuple[UpdateResult, WeightPayload, WeightPayload | None]:
        return self._all("update", *args)

    def update_part(self, *args: Any) -> int:
        return self._all("update_part", *args)

    def step_weights(self) -> tuple[StepFacts, WeightPayload | None]:
        return self._all("step_weights")

    def last_step(self) -> WeightPayload | None:
        return self._learner.last_step()

    def update_recorded(self) -> UpdateResult:
        return self._all("update_recorded")

    def save_policy(self, path: str) -> str:
        return self._all("save_policy", path)

    def _all(self, method: str, *args: Any) -> Any:
        shared = [ray.put(arg) for arg in args]  # once for all ranks
        refs = [other.call.remote(method, *shared) for other in self._others]
        return self._together(refs, lambda: getattr(self._learner, method)(*args))

    def _together(self, refs: list[Any], run: Callable[[], Any]) -> Any:
        """The result of `run` on this rank, once the other ranks have finished as well."""
        own = self._work.submit(copy_context().run, run)
        missing = refs
        while missing or not own.done():
            ended, missing = ray.wait(missing, num_returns=len(missing), timeout=POLL_S) if missing else ([], [])
            failed = [ref for ref in ended if _error(ref) is not None]
            if failed or (own.done() and own.exception()):
                self._fail(refs, own)
            if not missing:
                _settle(own)
        return own.result()

    def _fail(self, refs: list[Any], own: Future) -> NoReturn:
        """Raise the cause of the failure: the other ranks only report a lost connection to the rank that failed."""
        ray.wait(refs, num_returns=len(refs), timeout=GRACE_S)
        _settle(own, GRACE_S)
        ended = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        errors = {0: own.exception() if own.done() else None}
        errors |= {rank: _error(ref) for rank, ref in enumerate(refs, start=1) if ref in ended}
        for rank, error in errors.items():
            if isinstance(error, LOST):
                raise ActorLostError(f"rank {rank} of the learner's {len(refs) + 1} was lost: {error}") from error
        raised = {rank: error for rank, error in errors.items() if error is not None}
        for error in raised.values():
            if not _is_lost_connection(error):
                raise error
        rank, error = next(iter(raised.items()))
        raise ActorLostError(f"rank {rank} of the learner's {len(refs) + 1} lost its connection: {error}") from error


class _Rank:
    """The process of a rank that is not the first; its results equal those of rank 0 and are not returned."""

    def build(self, blueprint: tuple, spec: RankSpec) -> None:
        self._learner = _make(blueprint, spec)

    def call(self, method: str, *args: Any) -> None:
        getattr(self._learner, method)(*args)


def _make(blueprint: tuple, spec: RankSpec) -> Any:
    cls, config, *folders = blueprint
    return cls(config, *folders, Ranks.join(spec, process_device(config.cluster.device)))


def _settle(own: Future, timeout_s: float = POLL_S) -> None:
    """Wait for this rank's own call, whether it succeeds or fails."""
    try:
        own.exception(timeout_s)
    except TimeoutError:
        pass


def _error(ref: Any) -> BaseException | None:
    """The error that the call of another rank raised, or the loss of its process; None if it succeeded."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        return error.cause or error
    except LOST as error:
        return error
    return None


def _is_lost_connection(error: BaseException) -> bool:
    """Whether torch raised this because a peer is gone; torch has no exception class for it."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection", "peer"))


def check_ranks(config: Config, serial: bool) -> None:
    """Raises UserError if several learner ranks are configured with --serial."""
    if serial and config.cluster.learner_ranks > 1:
        raise UserError(
            f"cluster.learner_ranks={config.cluster.learner_ranks}: --serial has one process only; set "
            "cluster.learner_ranks=1"
        )
