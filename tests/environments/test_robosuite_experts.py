"""Scripted experts of robosuite: laws of their parts without a simulator, and real episodes of Lift where it is installed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.robosuite.experts import has_expert, make_expert
from wmpo_ray.environments.robosuite.experts.lift import LiftExpert
from wmpo_ray.environments.robosuite.experts.rotations import (
    DOWN,
    about_z,
    axis_angle,
    equivalents,
    hand_yaw,
    heading,
    rotation_about,
    wrap,
)
from wmpo_ray.environments.robosuite.experts.scene import Pose
from wmpo_ray.environments.robosuite.experts.servo import (
    INTEGRAL_LIMIT,
    POSITION_UNIT,
    ROTATION_UNIT,
    PositionServo,
    rotation_action,
)
from wmpo_ray.environments.robosuite.experts.stack import FINGER, clearance

TABLE = 0.8  # m
angles = st.floats(-3.1, 3.1)
axes = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda axis: np.linalg.norm(axis) > 0.1)


def test_what_cannot_be_carried_as_it_lies_in_the_hand_is_let_go():
    """An attempt that ends before its first action would otherwise be made again and again, and no action would come."""

    class Jammed(LiftExpert):
        attempts = 0

        def attempt(self):
            self.attempts += 1
            return False
            yield

    expert = Jammed()
    expert.begin(SimpleNamespace(hand=lambda: Pose(np.zeros(3), DOWN)))
    assert [expert.act()[-1] for _ in range(100)] == [-1.0] * 100 and expert.stage == "retreat" and expert.attempts > 1


# -- laws of the parts ---------------------------------------------------------------------------------------------------


@given(axes, angles)
def test_a_rotation_is_read_as_the_vector_that_it_was_made_of(axis, angle):
    axis = axis / np.linalg.norm(axis)
    np.testing.assert_allclose(axis_angle(rotation_about(axis, angle)), axis * angle, atol=1e-6)


@given(axes)
def test_half_a_turn_is_read_as_one(axis):
    rotation = rotation_about(axis / np.linalg.norm(axis), np.pi)
    vector = axis_angle(rotation)
    angle = np.linalg.norm(vector)
    np.testing.assert_allclose(rotation_about(vector / angle, angle), rotation, atol=1e-6)


@given(angles)
def test_the_yaw_of_a_hand_is_read_as_it_was_turned(yaw):
    assert wrap(hand_yaw(about_z(yaw) @ DOWN) - yaw) == pytest.approx(0, abs=1e-9)
    assert wrap(heading(about_z(yaw)) - yaw) == pytest.approx(0, abs=1e-9)


@given(st.floats(-10, 10), st.sampled_from([np.pi / 2, np.pi, 2 * np.pi]))
def test_equivalent_angles_are_all_those_within_the_limit(yaw, period):
    found = equivalents(yaw, period, limit=2.0)
    shifted = [yaw + k * period for k in range(-12, 13)]
    np.testing.assert_allclose(found, [angle for angle in shifted if abs(angle) <= 2.0])


def test_a_lagging_arm_that_sags_is_brought_to_its_target():
    servo, position = PositionServo(), np.zeros(3)
    sag, target = np.array([0.0, 0.0, -0.002]), np.array([0.10, -0.04, 0.02])
    for _ in range(80):
        position = position + 0.3 * POSITION_UNIT * servo.action(target - position) + 0.3 * sag
    np.testing.assert_allclose(position, target, atol=5e-4)


def test_the_integral_stays_bounded_and_begins_near_the_target_only():
    servo = PositionServo()
    for _ in range(10):
        servo.action(np.array([0.2, 0.0, 0.0]))
    assert not servo.integral.any()
    for _ in range(1000):
        action = servo.action(np.array([0.02, 0.0, 0.0]))
    assert servo.integral[0] == INTEGRAL_LIMIT and np.abs(action).max() <= 1


@given(angles)
def test_turning_by_the_action_comes_nearer_until_there(angle):
    rotation, target = np.eye(3), about_z(angle)
    for _ in range(12):
        rotation = about_z(ROTATION_UNIT * rotation_action(target, rotation)[2]) @ rotation
    np.testing.assert_allclose(rotation, target, atol=1e-6)


def test_a_cube_beside_the_fingers_is_in_their_way_and_one_between_them_and_the_palm_is_not():
    assert clearance(np.array([0.0, FINGER + 0.02, 0.0]), 0.0) < 0 < clearance(np.array([FINGER + 0.02, 0.0, 0.0]), 0.0)
    assert clearance(np.array([0.0, FINGER + 0.02, 0.0]), np.pi / 2) > 0
    low, tower = np.array([0.0, 0.11, 0.0]), np.array([0.0, 0.11, 0.045])
    assert clearance(low, 0.0) > 0 > clearance(tower, 0.0), "the palm is wider than the fingers reach"


# -- experts by name -------------------------------------------------------------------------------------------------------


def test_an_unknown_task_has_no_expert_and_the_error_names_those_with_one():
    assert has_expert("Lift") and not has_expert("Door")
    with pytest.raises(
        ConfigError, match=r'environment.task="Door": it has no expert; tasks with one are Lift, Stack'
    ) as error:
        make_expert("Door")
    assert "\n" not in str(error.value)


def test_experts_are_known_without_a_simulator():
    code = (
        "import sys; from wmpo_ray.environments.robosuite.experts import has_expert; assert has_expert('Stack');"
        "assert not {'robosuite', 'mujoco', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- a script without a simulator ------------------------------------------------------------------------------------------


class Toy:
    """A hand that goes where it is sent, and a cube that it takes along once it has closed on it (a `Scene`)."""

    def __init__(self, cube: tuple[float, float], yaw: float):
        self.env = SimpleNamespace(
            cube=SimpleNamespace(root_body="cube"),
            model=SimpleNamespace(mujoco_arena=SimpleNamespace(table_offset=np.array([0.0, 0.0, TABLE]))),
        )
        self.at, self.rotation = np.array([-0.1, 0.0, 1.0]), DOWN
        self.cube, self.cube_rotation, self.closed, self.held = np.array([*cube, TABLE + 0.02]), about_z(yaw), 0, False

    def hand(self) -> Pose:
        return Pose(self.at.copy(), self.rotation)

    def body(self, name: str) -> Pose:
        return Pose(self.cube.copy(), self.cube_rotation)

    def holds(self, model: Any) -> bool:
        return self.held

    def step(self, action: np.ndarray) -> None:
        assert action.shape == (7,) and action.dtype == np.float64 and np.abs(action).max() <= 1
        way = 0.3 * POSITION_UNIT * action[:3]
        self.at = self.at + way
        vector = 0.3 * ROTATION_UNIT * action[3:6]
        if angle := float(np.linalg.norm(vector)):
            self.rotation = rotation_about(vector / angle, angle) @ self.rotation
        self.closed = min(self.closed + 1, 8) if action[6] > 0 else 0
        across = self.cube_rotation.T @ self.rotation[:, 0]  # along which the fingers close, as the cube has it
        aligned = np.abs(across[:2]).max() > 0.98
        self.held = self.closed >= 5 and (self.held or (np.linalg.norm(self.at - self.cube) < 0.015 and aligned))
        if self.held:
            self.cube = self.cube + way
        else:
            self.cube[2] = TABLE + 0.02


def begun(scene: Toy) -> LiftExpert:
    expert = LiftExpert()
    expert.begin(scene)  # type: ignore[arg-type]
    return expert


def steps_until_lifted(expert: LiftExpert, scene: Toy, limit: int = 100) -> int:
    for step in range(limit):
        if scene.cube[2] > TABLE + 0.06:
            return step
        scene.step(expert.act())
    return limit


@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), angles)
def test_a_cube_is_lifted_wherever_it_lies(x, y, yaw):
    scene = Toy((x, y), yaw)
    assert steps_until_lifted(begun(scene), scene) < 100


def test_a_lost_cube_is_picked_up_again_and_the_hand_rests_when_done():
    scene = Toy((0.05, 0.03), 0.3)
    expert = begun(scene)
    assert steps_until_lifted(expert, scene) < 100
    scene.cube, scene.held, scene.closed = np.array([-0.05, -0.04, TABLE + 0.02]), False, 0
    assert steps_until_lifted(expert, scene) < 100
    for _ in range(40):
        scene.step(expert.act())
    before = scene.at
    scene.step(expert.act())
    assert expert.stage == "done" and np.linalg.norm(scene.at - before) < 1e-3


def test_an_expert_that_begins_amid_an_episode_goes_on_with_it():
    scene = Toy((0.05, 0.03), 0.3)
    expert = begun(scene)
    while not scene.held:
        scene.step(expert.act())
    assert steps_until_lifted(begun(scene), scene) < 20, "it does not open the hand again"


# -- real episodes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lift():
    robosuite = pytest.importorskip("robosuite", exc_type=ImportError)
    return robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=20,
    )


def episode(env: Any, seed: int, noise: float, begin_again: int = -1) -> tuple[bool, np.ndarray]:
    """Success within 64 steps, and the actions [T, 7] that the expert gave."""
    np.random.seed(seed)
    env.reset()
    rng, expert, actions = np.random.default_rng(seed), make_expert("Lift"), []
    expert.reset(env)
    for step in range(64):
        if step == begin_again:
            expert.reset(env)
        actions.append(expert.act())
        disturbed = actions[-1] + np.append(rng.normal(0, noise, 6), 0.0)
        env.step(np.clip(disturbed, -1, 1))
        if env._check_success():
            break
    return bool(env._check_success()), np.stack(actions)


def test_the_real_cube_is_lifted_the_same_way_twice(lift):
    success, actions = episode(lift, seed=7, noise=0.0)
    assert success and len(actions) < 45 and np.abs(actions).max() <= 1
    assert np.array_equal(episode(lift, seed=7, noise=0.0)[1], actions)


def test_the_real_cube_is_lifted_with_noise_and_after_a_new_beginning(lift):
    assert episode(lift, seed=8, noise=0.2)[0]
    assert episode(lift, seed=9, noise=0.0, begin_again=20)[0]
