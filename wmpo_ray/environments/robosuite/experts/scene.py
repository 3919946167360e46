"""What a script sees of a robosuite environment with one arm: poses and contacts, read from the simulator as it is now."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Pose(NamedTuple):
    position: np.ndarray  # [3] m
    rotation: np.ndarray  # [3, 3]


class Scene:
    """Made anew in every `reset`: a hard reset of robosuite replaces the simulator and its numbers of bodies."""

    def __init__(self, env: Any):
        self.env = env
        robot = env.robots[0]
        self._hand: int = robot.eef_site_id
        self._pads = [self._geom_ids(robot.gripper.important_geoms[f"{side}_fingerpad"]) for side in ("left", "right")]

    def hand(self) -> Pose:
        """The grip site between the fingers; its z points away from the arm."""
        return self._site_pose(self._hand)

    def body(self, name: str) -> Pose:
        data, number = self.env.sim.data, self.env.sim.model.body_name2id(name)
        return Pose(data.body_xpos[number].copy(), data.body_xmat[number].reshape(3, 3).copy())

    def site(self, name: str) -> Pose:
        return self._site_pose(self.env.sim.model.site_name2id(name))

    def joint(self, name: str) -> float:
        return float(self.env.sim.data.qpos[self.env.sim.model.get_joint_qpos_addr(name)])

    def holds(self, model: Any) -> bool:
        """Whether both finger pads touch an object of robosuite."""
        touching = self._touching(self._geom_ids(model.contact_geoms))
        return all(pads & touching for pads in self._pads)

    def touch(self, one: Any, other: Any) -> bool:
        """Whether two objects of robosuite touch."""
        return bool(self._touching(self._geom_ids(one.contact_geoms)) & self._geom_ids(other.contact_geoms))

    def _touching(self, geoms: set[int]) -> set[int]:
        """Numbers of the geoms that are in contact with one of these."""
        data, found = self.env.sim.data, set()
        for contact in data.contact[: data.ncon]:
            one, other = contact.geom1, contact.geom2
            if one in geoms:
                found.add(other)
            if other in geoms:
                found.add(one)
        return found

    def _geom_ids(self, names: list[str]) -> set[int]:
        return {self.env.sim.model.geom_name2id(name) for name in names}

    def _site_pose(self, number: int) -> Pose:
        data = self.env.sim.data
        return Pose(data.site_xpos[number].copy(), data.site_xmat[number].reshape(3, 3).copy())
