"""Scenes of an environment by name, each stepped in a thread of its own, and no step made twice.

An environment is what `wmpo_ray.core.interfaces.Environment` says, or anything with its attributes and methods: `restore`,
`advance`, `observe`, `render`, and what its `abilities` promise.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from wmpo_client.arrays import to_array, to_named
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import Refusal, bad

MAX_NAME = 128
MAX_RANDOM = 1024  # characters of a generator's state


@dataclass(frozen=True)
class Start:
    """What `StartState` of wmpo_ray is, for environments that are placed by seeds or saved states."""

    frames: np.ndarray  # [0, 0, 0, 3]
    instruction: str
    seed: int | None
    task: str
    saved_state: bytes | None


@dataclass
class Scene:
    """The environment of one name, and its last answer, for who asks again."""

    environment: Any
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))  # what draws stays in one thread
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int = 0
    sequence: int = 0
    asked: tuple | None = None  # what the last answer answers
    reply: Any = None
    used: float = field(default_factory=time.monotonic)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Raises Refusal for what the environment refuses."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        except ValueError as error:
            raise bad(str(error)) from error


class SceneTable:
    """At most `most` scenes; who was idle for `idle_s` makes room. One event loop at a time."""

    def __init__(self, make: Callable[[], Any], most: int = 64, idle_s: float = 3600.0):
        self.make, self.most, self.idle_s = make, most, idle_s
        self._scenes: OrderedDict[str, Scene] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scenes)

    async def find_or_make(self, name: str) -> Scene:
        if not 1 <= len(name) <= MAX_NAME:
            raise bad(f"a scene's name has {len(name)} characters; it has 1 to {MAX_NAME}")
        if name not in self._scenes:
            self._make_room()
            self._scenes[name] = Scene(self.make())
        return self.find(name)

    def find(self, name: str) -> Scene:
        """Raises Refusal for a scene that is not there: it was never placed, or the server has begun anew since."""
        scene = self._scenes.get(name)
        if scene is None:
            raise Refusal("NOT_FOUND", "no_scene", "no scene of this name; it has to be reset")
        scene.used = time.monotonic()
        self._scenes.move_to_end(name)
        return scene

    def _make_room(self) -> None:
        if len(self._scenes) < self.most:
            return
        name, oldest = next(iter(self._scenes.items()))
        if time.monotonic() - oldest.used < self.idle_s or oldest.turn.locked():
            raise Refusal("RESOURCE_EXHAUSTED", "scenes", f"{self.most} scenes are in use, and no more are made")
        del self._scenes[name]
        close(oldest)

    def close(self) -> None:
        for scene in self._scenes.values():
            close(scene)
        self._scenes.clear()


def close(scene: Scene) -> None:
    end = getattr(scene.environment, "close", None)
    if end is not None:
        scene.thread.submit(end)
    scene.thread.shutdown(wait=False)


# -- what a scene does; everything here runs in its thread ---------------------------------------------------------------


def state_of(scene: Scene) -> Any:
    """A SceneReply of what is known without drawing."""
    environment = scene.environment
    return pb.SceneReply(
        sequence=scene.sequence,
        terminated=to_array(np.asarray(environment.terminated, bool)),
        success=to_array(np.asarray(environment.success, bool)),
        failures=to_named({name: np.asarray(flags, bool) for name, flags in environment.failures.items()}),
    )


def see(environment: Any) -> Any:
    seen = environment.observe()
    return pb.SceneImages(
        images=to_named({camera: np.asarray(images, np.uint8) for camera, images in seen.images.items()}),
        instructions=list(seen.instructions),
        state=None if seen.state is None else to_array(np.asarray(seen.state, np.float32)),
    )


def place(scene: Scene, starts: list[Start], generation: int) -> Any:
    scene.environment.restore(starts)
    scene.generation, scene.sequence = generation, 0
    return state_of(scene)


def step(scene: Scene, actions: np.ndarray, frames: int, expert: tuple[Any, float] | None) -> Any:
    """actions [N, K, D]; with an expert (generator, noise) only K counts."""
    environment, shown, chosen = scene.environment, [], []
    length = actions.shape[1]
    num_steps = np.zeros(len(environment.terminated), np.int64)
    for index in range(length):
        num_steps += ~np.asarray(environment.terminated, bool)
        action = actions[:, index] if expert is None else environment.expert_action(*expert)
        chosen.append(np.asarray(action, np.float32))
        environment.advance(chosen[-1])
        if frames == pb.ALL and index < length - 1:
            shown.append(environment.render())
    scene.sequence += length
    reply = state_of(scene)
    reply.num_steps.CopyFrom(to_array(num_steps))
    if frames != pb.NONE:
        reply.seen.CopyFrom(see(environment))
    if shown:
        reply.frames.CopyFrom(to_array(np.stack(shown, 1)))
    if expert is not None:
        reply.actions.CopyFrom(to_array(np.stack(chosen, 1)))
        reply.random = json.dumps(expert[0].bit_generator.state)
    return reply


def choose(scene: Scene, rng: np.random.Generator, noise: float) -> Any:
    """One action of the expert for every scene, which is not made."""
    reply = state_of(scene)
    reply.actions.CopyFrom(to_array(np.asarray(scene.environment.expert_action(rng, noise), np.float32)[:, None]))
    reply.random = json.dumps(rng.bit_generator.state)
    return reply


def generator_of(text: str) -> np.random.Generator:
    """The generator of a state as JSON. Raises Refusal."""
    generator = np.random.default_rng(0)
    try:
        if len(text) > MAX_RANDOM:
            raise ValueError("too long")
        generator.bit_generator.state = json.loads(text)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
        raise bad("the state of a random generator is not one") from None
    return generator
