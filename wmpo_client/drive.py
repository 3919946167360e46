"""One control loop of everything: a robot, a served policy, limits, and a recording of each episode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from wmpo_client.broker import ChunkBroker
from wmpo_client.episode_recorder import EpisodeRecorder
from wmpo_client.operator_keys import OperatorKeys
from wmpo_client.refusals import ClientError
from wmpo_client.safety import SafeRobot, SafetyLimits, Stopped
from wmpo_client.served_policy import Chunk, Seen


class Robot:
    """What a robot's own program brings; a base class for those who like one."""

    def see(self) -> Seen:
        """What its cameras show now."""
        raise NotImplementedError

    def apply(self, action: np.ndarray) -> None:
        """Begin to move by an action [D]; returns before it is done."""
        raise NotImplementedError

    def hold(self) -> None:
        """Keep the place. May come from another thread, and again and again."""
        raise NotImplementedError

    def correction(self) -> np.ndarray | None:
        """The operator's action [D] of this tick, where one takes over; None: the policy's."""
        return None

    def verdict(self) -> bool | None:
        """Success or failure once it is known, by a key or a sensor; None: not yet."""
        return None

    def failures(self) -> Sequence[str]:
        """What has gone wrong so far, by names among `failure_names`."""
        return ()

    failure_names: Sequence[str] = ()
    decided_by = "operator"
    seed = -1  # of a simulator's scene


@dataclass(frozen=True)
class DriveOptions:
    """rate_hz: ticks a second, 0: as fast as it goes. real_time: the clock goes on while a chunk is on its way."""

    max_steps: int
    rate_hz: float = 10.0
    mode: str = "wait"  # of the chunk broker
    ask_ahead: int = 2
    patience_s: float = 60.0  # for a first chunk, or with "wait" for any
    verdict_s: float = 0.0  # after the last step, for a person's key
    purpose: str = "collect"


@dataclass
class Driven:
    """What became of an episode."""

    num_steps: int = 0
    num_held: int = 0  # ticks without an action
    success: bool | None = None
    is_persons: bool = False  # the verdict
    was_stopped: bool = False
    id: str = ""
    versions: set = field(default_factory=set)  # updates of the policies that acted

    def hear(self, keys: OperatorKeys, seconds: float) -> bool:
        """Whether a person has said how it ended, or says so within this time."""
        said = keys.verdict(seconds)
        if said is not None:
            self.success, self.is_persons = said, True
        return said is not None


def drive(
    robot: Robot,
    act: Callable[[Seen], Chunk],
    limits: SafetyLimits,
    options: DriveOptions,
    recorder: EpisodeRecorder | None = None,
    watch: Callable[[SafeRobot], None] = lambda safe: None,
    keys: OperatorKeys | None = None,
) -> Driven:
    """One episode, until the robot or a person's key says how it ended, `max_steps` are made, or it is stopped.

    watch: is given the robot behind its limits, for a stop key. keys: a person's; theirs goes before the robot's own
    verdict. Raises ClientError where no chunk comes in time; the robot is held before.
    """
    made, safe = Driven(), SafeRobot(robot.apply, robot.hold, limits)
    watch(safe)
    if keys is not None:
        keys.begin(safe)
    broker = ChunkBroker(act, options.mode, options.ask_ahead)
    try:
        if recorder is not None:
            recorder.begin(robot.see(), options.purpose, robot.seed)
        _run(robot, safe, broker, options, recorder, made, keys)
        if keys is not None and made.success is None:
            safe.hold()
            made.hear(keys, options.verdict_s)
    except Stopped:
        made.was_stopped = True
    finally:
        if keys is not None:
            keys.end()
        safe.close()
        broker.close()
    if recorder is not None and recorder.is_recording:
        _keep(robot, recorder, made)
    return made


def _keep(robot: Robot, recorder: EpisodeRecorder, made: Driven) -> None:
    """An episode without a step is dropped."""
    if not made.num_steps:
        recorder.drop()
        return
    success = None if made.was_stopped else made.success
    by = "operator" if made.is_persons else robot.decided_by
    made.id = recorder.end(success, by, 0.0, robot.failure_names)


def _run(
    robot: Robot,
    safe: SafeRobot,
    broker: ChunkBroker,
    options: DriveOptions,
    recorder: EpisodeRecorder | None,
    made: Driven,
    keys: OperatorKeys | None,
) -> None:
    period = 1 / options.rate_hz if options.rate_hz else 0.0
    due_at, waited_since = time.monotonic(), time.monotonic()
    while made.num_steps < options.max_steps and made.success is None:
        if keys is not None and made.hear(keys, 0.0):
            return
        correction = robot.correction()
        due = broker.next(robot.see)
        action: Any = correction if correction is not None else None if due is None else due.action
        if action is None:
            if safe.is_stopped:
                raise Stopped("the robot is stopped")
            made.num_held += 1
            if time.monotonic() - waited_since > options.patience_s:
                raise ClientError(f"no chunk of actions came within {options.patience_s:g} s; the robot is held")
            broker.wait(period or 1.0)
        else:
            executed = safe.act(action)
            waited_since = time.monotonic()
            made.num_steps += 1
            if due is not None:
                made.versions.add(due.chunk.num_updates)
        due_at = _sleep_until(due_at + period, period)
        if action is not None:
            made.success = robot.verdict()
            if recorder is not None:
                chunk = None if due is None else due.chunk
                recorder.step(executed, robot.see(), correction is not None, chunk, robot.failures())


def _sleep_until(due: float, period: float) -> float:
    """Wait for the next tick; returns when it was. Who is late does not hurry after."""
    left = due - time.monotonic()
    if left > 0:
        time.sleep(left)
        return due
    return due if -left < period else time.monotonic()
