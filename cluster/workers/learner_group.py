"""A learner in several processes, one of them on each of its GPUs; to the driver it is one actor.

That actor holds rank 0 and starts the others: Ray ends them with it. Whatever it is asked to do, all ranks do together.
If one of them is lost, the actor says so as if it had been lost itself, and the driver replaces it, and with it all.
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
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.types import LearnerState, UpdateResult, WeightVersion
from wmpo_ray.policies.weight_payload import WeightPayload

LOOK_S = 0.5  # between two looks at the other ranks
GRACE_S = 10.0  # in which the other ranks notice that one has failed, and say what they know of it


class LearnerGroup:
    """Has the methods of a learner of the class `cls`, and makes one in every rank.

    Args:
        cls: made from a config, the folders of the policy and of the checkpoints, and `Ranks`
        places: of all ranks but the first
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

    def update_recorded(self) -> UpdateResult:
        return self._all("update_recorded")

    def save_policy(self, path: str) -> str:
        return self._all("save_policy", path)

    def _all(self, method: str, *args: Any) -> Any:
        shared = [ray.put(arg) for arg in args]  # once for all ranks
        refs = [other.call.remote(method, *shared) for other in self._others]
        return self._together(refs, lambda: getattr(self._learner, method)(*args))

    def _together(self, refs: list[Any], run: Callable[[], Any]) -> Any:
        """What `run` gives here, once the other ranks are through as well."""
        own = self._work.submit(copy_context().run, run)
        missing = refs
        while missing or not own.done():
            ended, missing = ray.wait(missing, num_returns=len(missing), timeout=LOOK_S) if missing else ([], [])
            failed = [ref for ref in ended if _error(ref) is not None]
            if failed or (own.done() and own.exception()):
                self._fail(refs, own)
            if not missing:
                _settle(own)
        return own.result()

    def _fail(self, refs: list[Any], own: Future) -> NoReturn:
        """Raise what explains the failure: the others only say that they have lost touch with the rank that failed."""
        ray.wait(refs, num_returns=len(refs), timeout=GRACE_S)
        _settle(own, GRACE_S)
        ended = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        errors = {0: own.exception() if own.done() else None}
        errors |= {rank: _error(ref) for rank, ref in enumerate(refs, start=1) if ref in ended}
        for rank, error in errors.items():
            if isinstance(error, LOST):
                raise ActorLostError(f"rank {rank} of the learner's {len(refs) + 1} was lost: {error}") from error
        told = {rank: error for rank, error in errors.items() if error is not None}
        for error in told.values():
            if not _is_loss_of_touch(error):
                raise error
        rank, error = next(iter(told.items()))
        raise ActorLostError(f"rank {rank} of the learner's {len(refs) + 1} lost touch: {error}") from error


class _Rank:
    """The process of a rank that is not the first; its results are rank 0's too, so it keeps them to itself."""

    def build(self, blueprint: tuple, spec: RankSpec) -> None:
        self._learner = _make(blueprint, spec)

    def call(self, method: str, *args: Any) -> None:
        getattr(self._learner, method)(*args)


def _make(blueprint: tuple, spec: RankSpec) -> Any:
    cls, config, *folders = blueprint
    return cls(config, *folders, Ranks.join(spec, process_device(config.cluster.device)))


def _settle(own: Future, timeout_s: float = LOOK_S) -> None:
    """Wait for this rank's own part, whatever comes of it."""
    try:
        own.exception(timeout_s)
    except TimeoutError:
        pass


def _error(ref: Any) -> BaseException | None:
    """What the call of another rank raised, or what became of its process."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        return error.cause or error
    except LOST as error:
        return error
    return None


def _is_loss_of_touch(error: BaseException) -> bool:
    """Whether it is what torch raises in a rank whose neighbour has gone, for which it has no class of its own."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection", "peer"))


def check_ranks(config: Config, serial: bool) -> None:
    """Raises UserError where several processes are asked for and there is only one."""
    if serial and config.cluster.learner_ranks > 1:
        raise UserError(
            f"cluster.learner_ranks={config.cluster.learner_ranks}: --serial has one process only; set "
            "cluster.learner_ranks=1"
        )
