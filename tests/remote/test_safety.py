"""Limits that nothing remote changes, a watchdog, and a stop that always works."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tests.support.motors import WIDE, Motors
from wmpo_client.safety import SafeRobot, SafetyLimits, Stopped


def safe(motors: Motors, **changes) -> SafeRobot:
    limits = {"low": (-1.0, -1.0), "high": (1.0, 0.5), "step": (0.2, 9.0), "velocity": (1e9, 1.0), "watchdog_s": 0.5}
    return SafeRobot(motors.apply, motors.hold, SafetyLimits(**{**limits, **changes}), motors.clock)


def test_places_are_bounded_by_range_step_and_velocity_in_each_dimension():
    motors = Motors()
    robot = safe(motors)
    robot.place(np.zeros(2))
    motors.now = 0.1
    assert robot.act(np.array([9.0, 9.0])).tolist() == pytest.approx([0.2, 0.1])  # a step of .2; 1 a second for .1 s
    motors.now = 0.4
    assert robot.act(np.array([-9.0, 9.0])).tolist() == pytest.approx([0.0, 0.4])
    motors.now = 50.0
    assert robot.act(np.array([0.0, 9.0])).tolist() == pytest.approx([0.0, 0.5]), "a pause allows no leap"
    motors.now = 0.0  # the clock jumps back
    assert robot.act(np.array([0.0, -9.0])).tolist() == pytest.approx([0.0, 0.5])
    assert robot.num_clipped == 4
    robot.close()


def test_motions_are_bounded_themselves():
    motors = Motors()
    robot = safe(motors, is_relative=True)
    motors.now = 0.1
    assert robot.act(np.array([0.5, -0.5])).tolist() == pytest.approx([0.2, -0.1])
    robot.close()


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.array([np.inf, 0.0]), np.zeros(3), np.zeros((1, 2))])
def test_what_is_no_action_stops_the_robot(action):
    motors = Motors()
    robot = safe(motors)
    with pytest.raises(ValueError, match="not 2 finite numbers"):
        robot.act(action)
    assert motors.moves == [] and motors.num_holds == 1 and robot.is_stopped
    robot.close()


def test_the_watchdog_holds_a_robot_that_no_action_comes_for():
    motors = Motors()
    robot = safe(motors)
    robot.act(np.zeros(2))
    motors.now = 0.4
    robot.check()
    assert motors.num_holds == 0
    motors.now = 0.6
    robot.check()
    robot.check()
    assert motors.num_holds == 1, "once, until it moves again"
    robot.act(np.zeros(2))
    motors.now = 1.2
    robot.check()
    assert motors.num_holds == 2
    robot.close()


def test_the_watchdog_is_a_thread_of_its_own():
    motors = Motors()
    limits = SafetyLimits((-1.0,), (1.0,), (2.0,), (9e9,), watchdog_s=0.05)
    robot = SafeRobot(motors.apply, motors.hold, limits)
    robot.act(np.zeros(1))
    until = time.monotonic() + 20
    while not motors.num_holds and time.monotonic() < until:
        time.sleep(0.01)
    assert motors.num_holds == 1
    robot.close()


def test_a_stop_works_from_any_thread_while_an_action_hangs_and_lasts_until_somebody_resumes():
    motors, hangs, ended = Motors(), threading.Event(), threading.Event()

    def apply(action) -> None:
        motors.apply(action)
        hangs.set()
        assert ended.wait(20)

    robot = SafeRobot(apply, motors.hold, WIDE)
    thread = threading.Thread(target=robot.act, args=(np.zeros(1),))
    thread.start()
    assert hangs.wait(20)
    robot.stop()
    assert motors.num_holds == 1
    ended.set()
    thread.join(20)
    with pytest.raises(Stopped):
        robot.act(np.zeros(1))
    assert len(motors.moves) == 1
    robot.resume()
    robot.act(np.zeros(1))
    assert len(motors.moves) == 2
    robot.close()


def test_an_error_of_the_motors_stops_the_robot():
    motors = Motors()

    def apply(action) -> None:
        raise RuntimeError("overheated")

    robot = SafeRobot(apply, motors.hold, WIDE)
    with pytest.raises(RuntimeError, match="overheated"):
        robot.act(np.zeros(1))
    assert robot.is_stopped and motors.num_holds == 1
    robot.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"step": (1.0,)}, "dimensions"), ({"low": (2.0, 2.0)}, "below"), ({"velocity": (0.0, 1.0)}, "above 0")],
)
def test_limits_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        safe(Motors(), **changes)
