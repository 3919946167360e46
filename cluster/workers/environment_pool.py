"""Workers with a real environment for the stages that record and evaluate: batches go to whoever is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import Runtime
from cluster.workers.actor_pool import ActorPool, Phase, StartError, Worker
from cluster.workers.crew import Crew
from cluster.workers.placement import PlacementBook, Reservation
from cluster.workers.tasks import Joined, Task
from cluster.workers.telemetry import Telemetry
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError

ROLE = "environment"
TURN_S = 0.5  # between two looks at the workers


class Call(NamedTuple):
    """A call of the workers' class: a pure function, so that any of them gives the same answer."""

    order: int
    method: str
    args: tuple
    about: str  # what it is about, in an error


class Answered(NamedTuple):
    call: Call
    value: Any


class EnvironmentPool:
    """Makes calls on workers of the role `environment`, as many at a time as there are workers.

    A lost worker costs the call that it was making, which another one repeats. A worker starts when there is a call for
    it. `start` gives the runtime, where events are counted, and how many workers there may be.
    """

    def __init__(
        self,
        config: Config,
        start: Callable[[], tuple[Runtime, Telemetry, int]],
        cls: type,
        stage: str,
    ):
        self.config, self.stage = config, stage
        self._start, self._cls = start, cls
        self._num_open = 0  # calls that are not answered yet
        self._most = 1

    @cached_property
    def _crew(self) -> Crew:
        runtime, telemetry, self._most = self._start()
        book = PlacementBook(self.config, Reservation if isinstance(runtime, RayRuntime) else None)

        def spawn(index: int) -> Any:
            name, place = f"{ROLE}-{index}", book.place(ROLE, index)
            return runtime.spawn(self._cls, self.config, resources=place, name=name)

        def release(index: int) -> None:
            book.release(ROLE, index)

        crew = Crew(runtime, self.config.faults, telemetry)
        crew.pools[ROLE] = _Workers(runtime, ROLE, 0, self.config.faults, spawn, release)
        return crew

    @property
    def num_restarts(self) -> int:
        """How many workers were lost."""
        return self._crew.pools[ROLE].num_restarts if "_crew" in self.__dict__ else 0

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """Make the calls; yields each with its answer, in the order in which the answers come.

        The next call is asked for when there is a worker for it. Raises UserError for a call that crashed
        `faults.max_crashes` workers, and for workers that do not start.
        """
        coming = iter(calls)
        try:
            while True:
                while self._has_room and (call := next(coming, None)) is not None:
                    self._submit(call)
                if not self._num_open:
                    return
                for answered in self._turn():
                    self._num_open -= 1
                    yield answered.call, answered.value
        except StartError as error:
            raise UserError(f"stage {self.stage}: {error}") from error

    @property
    def _has_room(self) -> bool:
        return self._num_open < self._most

    def _turn(self) -> list[Answered]:
        crew = self._crew
        crew.turn()
        answers = []
        for event in crew.events(crew.pending.wait(TURN_S)):
            match event:
                case Joined():
                    crew.serves(event.worker)
                case Answered():
                    answers.append(event)
        return answers

    def _submit(self, call: Call) -> None:
        def give_up(error: Exception) -> None:
            limit = self.config.faults.max_crashes
            raise UserError(
                f"stage {self.stage}: {call.about} crashed {limit} environment workers, so no other will be tried: {error}. "
                f"What is done is kept, and --resume goes on from there; mend the cause, leave these start states out "
                f"with another seed, or raise faults.max_crashes={limit}"
            ) from error

        crew, self._num_open = self._crew, self._num_open + 1
        crew.pools[ROLE].resize(max(crew.pools[ROLE].target, self._num_open))
        crew.submit(
            Task(
                ROLE,
                call.method,
                call.args,
                order=(call.order,),
                done=lambda value, _ref: Answered(call, value),
                given_up=give_up,
                max_crashes=self.config.faults.max_crashes,
                worked=lambda worker, work: crew.telemetry.worked(worker, call.method, work, 0, 0),
            )
        )

    def stop(self) -> None:
        if "_crew" in self.__dict__:
            self._crew.stop()


class _Workers(ActorPool):
    def lose(self, worker: Worker, error: Exception) -> None:
        if worker.phase is Phase.READY:  # in a call, whose crashes are counted with the call
            worker.num_failures = 0
        super().lose(worker, error)
