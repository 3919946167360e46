"""The experts of Stack and of MimicGen's StackThree: cubes are put on one another."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Part
from wmpo_ray.environments.robosuite.experts.moves import YAW_LIMIT, Manipulation, Target
from wmpo_ray.environments.robosuite.experts.rotations import equivalents, heading
from wmpo_ray.environments.robosuite.experts.scene import Pose

QUARTER = np.pi / 2
ABOVE = 0.05  # m between the cubes while one is brought over the other
CONTACT = 0.006  # m between them when the hand opens
OVER_WITHIN = np.array([0.006, 0.006, 0.02])  # m
ALIGNED = 0.5  # share of the upper cube's half width that it may stand beside the lower one's middle
TRAVEL = 0.09  # m that the grip site passes above the highest cube's middle
FINGER, FINGER_CLEAR = 0.05, 0.047  # m from the grip site to an open finger, and from there to a cube's middle
PALM, PALM_CLEAR = np.array([0.10, 0.032]), 0.03  # m: half sizes of the palm along the fingers' way and across it
PALM_HEIGHT = 0.045  # m above the grip site


def clearance(other: np.ndarray, yaw: float) -> float:
    """How far another cube is from an open hand with a yaw, m, beyond what is needed; its middle [3] from the grip site.

    Low cubes are in the way of the fingers only, a tower in that of the palm as well.
    """
    along = -np.sin(yaw) * other[0] + np.cos(yaw) * other[1]
    across = np.cos(yaw) * other[0] + np.sin(yaw) * other[1]
    beside = np.hypot(abs(along) - FINGER, across) - FINGER_CLEAR
    if other[2] < PALM_HEIGHT / 2:
        return float(beside)
    from_palm = np.hypot(*np.maximum(np.abs([along, across]) - PALM, 0))
    return float(min(beside, from_palm - PALM_CLEAR))


class StackExpert(Manipulation):
    """Stacks pairs of cubes in order; a pair that came apart is stacked again."""

    cubes: ClassVar[tuple[str, ...]] = ("cubeA", "cubeB")
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (("cubeA", "cubeB"),)  # upper, lower

    def attempt(self) -> Part:
        missing = [pair for pair in self.pairs if not self._stacked(*pair)]
        return self._stack(*missing[0]) if missing else self.rest()

    def _stack(self, upper: str, lower: str) -> Part:
        cube = self._model(upper)
        if not self.keeps(cube):
            yaw = self._clear_yaw(upper)
            travel = max(self._pose(name).position[2] for name in self.cubes) + TRAVEL

            def grasp() -> Target:
                return Target(self._pose(upper).position, yaw)

            if not (yield from self.pick(cube, grasp, within=0.005, travel=travel)):
                return False
        self.stage = "lift"
        yield from self.rise(self._height(upper, lower) + ABOVE)
        self.stage = "carry"
        if not (
            yield from self.carry(cube, lambda: self._pose(upper), lambda: self._on(upper, lower, ABOVE), OVER_WITHIN)
        ):
            return False
        self.stage = "lower"
        yield from self.carry(
            cube, lambda: self._pose(upper), lambda: self._on(upper, lower, CONTACT), 0.005, max_steps=25
        )
        return (yield from self.release())

    def _stacked(self, upper: str, lower: str) -> bool:
        """Whether one cube stands on the other, and the hand is not at it any more."""
        one, other = self._pose(upper).position, self._pose(lower).position
        beside = float(np.abs(one - other)[:2].max())
        above = one[2] - other[2]
        return (
            beside < 2 * self._half(lower)
            and above > 0.8 * (self._half(upper) + self._half(lower))
            and self.scene.touch(self._model(upper), self._model(lower))
            and not self.scene.holds(self._model(upper))
        )

    def _on(self, upper: str, lower: str, gap: float) -> Target:
        x, y, _ = self._pose(lower).position
        return Target(np.array([x, y, self._height(upper, lower) + gap]))

    def _height(self, upper: str, lower: str) -> float:
        """Of the middle of a cube that stands on another."""
        return float(self._pose(lower).position[2]) + self._half(upper) + self._half(lower)

    def _clear_yaw(self, name: str) -> float:
        """The yaw with the least turn at which the fingers go down beside all other cubes, or else the clearest."""
        now, pose = self.yaw(), self._pose(name)
        others = [self._pose(other).position - pose.position for other in self.cubes if other != name]
        options = sorted(equivalents(heading(pose.rotation), QUARTER, YAW_LIMIT), key=lambda yaw: abs(yaw - now))

        def clear(yaw: float) -> float:
            return min(clearance(other, yaw) for other in others)

        return next((yaw for yaw in options if clear(yaw) > 0), max(options, key=clear))

    def _model(self, name: str) -> Any:
        return getattr(self.scene.env, name)

    def _pose(self, name: str) -> Pose:
        return self.scene.body(self._model(name).root_body)

    def _half(self, name: str) -> float:
        return float(self._model(name).size[2])


class StackThreeExpert(StackExpert):
    cubes: ClassVar[tuple[str, ...]] = ("cubeA", "cubeB", "cubeC")
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (("cubeA", "cubeB"), ("cubeC", "cubeA"))
