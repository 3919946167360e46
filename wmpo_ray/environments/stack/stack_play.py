"""Play around the two cubes of the small Stack: what was taken is mostly brought to the other one.

A cube on another is the end of a long way that undirected play hardly ever finds, so half of the players go some of that
way, or all of it, as the expert does.
"""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.stack.stack_script import ON, StackScript
from wmpo_ray.environments.stack.stack_settings import BOX
from wmpo_ray.environments.tabletop.table_player import TablePlayer
from wmpo_ray.environments.tabletop.table_scene import TableScene

BRINGING = 0.8  # share of the cubes taken somewhere that are brought to the other one
KNOWING = 0.5  # share of the players who begin as the expert would
BY_THEN = (8, 36)  # actions until they begin to play
ERRORS = (0.004, 0.012, 0.025)  # metres beside the other cube


class StackPlay(TablePlayer):
    lift_range, going_on = (0.885, 0.925), 0.8

    def __init__(self, rng: np.random.Generator):
        super().__init__(BOX, rng)
        self.script = StackScript()
        self.known = int(rng.integers(*BY_THEN)) if rng.random() < KNOWING else 0  # actions of the expert to come

    def act(self, scene: TableScene) -> np.ndarray:
        if self.known:
            self.known -= 1
            return self.script.act(scene, self.rng, self.noise)
        return super().act(scene)

    def go_on_with_it(self) -> None:
        super().go_on_with_it()
        if self.rng.random() < BRINGING:
            self.kind, self.stage, self.timer = "bring", "over", 0
            self.beside = self.rng.normal(0, 1, 2) * self.rng.choice(ERRORS)
            self.gap = max(self.rng.normal(0.006, 0.012), -0.01)  # metres between the cubes where it opens

    def want(self, scene: TableScene, hand: np.ndarray, held: bool) -> np.ndarray:
        return self._bring(scene, hand, held) if self.kind == "bring" else super().want(scene, hand, held)

    def _bring(self, scene: TableScene, hand: np.ndarray, held: bool) -> np.ndarray:
        upper, lower = scene.cube_positions
        goal = lower + [*self.beside, ON + self.gap]
        if self.stage == "over" and (np.abs((upper - goal)[:2]).max() < 0.012 or self.timer > 8):
            self.stage = "down"
        if self.stage == "down" and (upper[2] < goal[2] + 0.004 or self.timer > 14 or not held):
            self.stage, self.timer, self.grip = "open", 0, -1.0
        if self.stage == "open":
            if self.timer > 1:
                self.want_anew()
            return hand + [0, 0, 0.02 * self.timer]
        target = hand + goal - upper
        return np.append(target[:2], self.lift_to) if self.stage == "over" else target
