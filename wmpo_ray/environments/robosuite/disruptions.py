"""What differs from the scenes that a policy was trained in: where things are, what the table looks like, what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.robosuite.simulator import Simulator

GREY = (0.35, 0.35, 0.35, 1.0)  # the table without its ceramic
TEXTURE = "dark-wood.png"  # robosuite's own, that none of its objects has
# Distance from the middle of the table, in metres along x or y, of displaced objects; beyond what the task itself draws.
DISPLACED_OBJECTS = {"Lift": (0.05, 0.10), "Stack": (0.09, 0.14)}
APART = 0.07  # metres between displaced objects: they do not touch
# The square peg goes this much towards the robot and to its sides.
DISPLACED_PEG_X, DISPLACED_PEG_Y = (-0.12, -0.05), (-0.03, 0.06)
TASKS_WITH_PEGS = ("NutAssemblySquare", "Square_D0")
TASKS_WITH_BINS = "PickPlace"  # and those whose names begin so
_SALT = 7919  # a displacement is not drawn from the numbers that placed the scene


def disruptions_of(task: str) -> tuple[str, ...]:
    """Those that are defined for a task."""
    position = ("position",) if task in (*DISPLACED_OBJECTS, *TASKS_WITH_PEGS) else ()
    background = () if task.startswith(TASKS_WITH_BINS) else ("background",)
    return (*position, *background, "texture")


def check_disruption(task: str, disruption: str) -> None:
    """Raises ConfigError for a task whose things nobody has said where to put, or that has no table."""
    if disruption == "none" or disruption in disruptions_of(task):
        return
    if disruption == "position":
        why = f"it is defined for {', '.join((*DISPLACED_OBJECTS, *TASKS_WITH_PEGS))}, and"
    else:
        why = "it is another table, which tasks with bins do not have, and"
    raise ConfigError(
        f"environment.disruption={shown(disruption)}: {why} environment.task is {shown(task)}; change one of them"
    )


def change_look(simulator: Simulator, disruption: str) -> None:
    """Of all scenes of a simulator, before anything is drawn."""
    if disruption == "background":
        table = simulator.model.geom("table_visual")
        table.matid[:], table.rgba[:] = -1, GREY
    elif disruption == "texture":
        for texture in _textures_of_objects(simulator):
            _paint(simulator.model, texture)


def displace(simulator: Simulator, task: str, seed: int) -> None:
    """Move the things of the scene that was just placed; the same seed moves them the same way."""
    rng = np.random.default_rng([_SALT, seed])
    if task in TASKS_WITH_PEGS:
        peg = simulator.model.body("peg1").id
        simulator.model.body_pos[peg, :2] = simulator.body_pos[peg, :2] + [
            rng.uniform(*DISPLACED_PEG_X),
            rng.uniform(*DISPLACED_PEG_Y),
        ]
        return
    placed: list[np.ndarray] = []
    for item in simulator.env.model.mujoco_objects:
        while True:
            spot = _spot(rng, *DISPLACED_OBJECTS[task])
            if all(np.hypot(*(spot - other)) >= APART for other in placed):
                break
        placed.append(spot)
        address = simulator.model.joint(item.joints[0]).qposadr[0]
        simulator.data.qpos[address : address + 2] = spot


def _spot(rng: np.random.Generator, inner: float, outer: float) -> np.ndarray:
    """A point [2] in the square of half the side `outer` and outside that of `inner`."""
    while True:
        spot = rng.uniform(-outer, outer, 2)
        if np.abs(spot).max() >= inner:
            return spot


def _textures_of_objects(simulator: Simulator) -> list[int]:
    """Ids of the textures that the objects of the task have."""
    model, found = simulator.model, set()
    for item in simulator.env.model.mujoco_objects:
        for name in item.visual_geoms:
            material = int(model.geom(name).matid[0])
            if material >= 0 and (texture := int(np.ravel(model.mat_texid)[material])) >= 0:
                found.add(texture)
    return sorted(found)


def _paint(model: Any, texture: int) -> None:
    """Replace the pixels of a texture, each face of a cube's by the whole picture."""
    import robosuite

    height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
    faces = max(1, height // width)
    path = Path(robosuite.models.assets_root) / "textures" / TEXTURE
    picture = Image.open(path).convert("RGB").resize((width, height // faces))
    first = int(model.tex_adr[texture])
    model.tex_rgb[first : first + 3 * width * height] = np.tile(np.asarray(picture), (faces, 1, 1)).ravel()
