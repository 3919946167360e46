"""A simulator for others: `serve(make_environment, "127.0.0.1:7411")` in whatever Python it needs.

from wmpo_client.serving.environment_server import serve
serve(MyEnvironment, "127.0.0.1:7411", instructions=("lift the cube",))
"""

from __future__ import annotations

import asyncio
import json
import platform
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from wmpo_client import PROTOCOL
from wmpo_client.arrays import from_array, to_named
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import Refusal, bad
from wmpo_client.serving.locked_server import (
    Bounds,
    Lock,
    Refusals,
    add_health_and_reflection,
    make_server,
    open_door,
)
from wmpo_client.serving.scene_table import (
    Scene,
    SceneTable,
    Start,
    choose,
    generator_of,
    place,
    see,
    state_of,
    step,
)
from wmpo_client.token_file import require_token

SERVICE = "wmpo.v1.Environments"
MAX_SCENES = 4096  # stepped together
MAX_STEPS = 1024  # of a call
READERS = {"events": "detect_events", "locate": "locate", "failures": "detect_failures", "positions": "positions"}
DEFAULT_BOUNDS = Bounds(message_bytes=64 * 2**20, call_s=600.0)


class EnvironmentService(rpc.EnvironmentsServicer):
    """One `make()` for every name of a scene; see the protocol for what is answered.

    instructions: every one that an episode may have. settings: what the environment was made with, in JSON's types.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        instructions: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self.table, self.bounds = SceneTable(make), bounds
        self.first = make()
        self.instructions = tuple(instructions) or tuple(getattr(self.first, "instructions", ()))
        self.settings = dict(settings or {})

    async def Capabilities(self, request: Any, context: Any) -> Any:
        height, width, _ = self.first.frame_shape
        return pb.CapabilitiesReply(
            protocol=PROTOCOL,
            name=type(self.first).__name__,
            horizon=self.first.horizon,
            action_dims=self.first.action_dim,
            frame_height=height,
            frame_width=width,
            abilities=sorted(self.first.abilities),
            instructions=self.instructions,
            versions=json.dumps({"python": platform.python_version(), "numpy": np.__version__}),
            settings=json.dumps(self.settings),
            position_unit=getattr(self.first, "position_unit", ""),
        )

    async def Reset(self, request: Any, context: Any) -> Any:
        if not len(request.starts) <= MAX_SCENES:
            raise bad(f"{len(request.starts)} starts; {MAX_SCENES} scenes are the most")
        scene = await self.table.find_or_make(request.scene)
        async with scene.turn:
            asked = ("reset", request.generation)
            if scene.asked == asked and scene.generation == request.generation:
                return scene.reply
            if request.generation <= scene.generation:
                raise _stale(scene, request.generation, 0)
            starts = [_start(each) for each in request.starts]
            scene.reply = await scene.run(lambda: place(scene, starts, request.generation))
            scene.asked = asked
            return scene.reply

    async def Step(self, request: Any, context: Any) -> Any:
        scene = self.table.find(request.scene)
        async with scene.turn:
            asked = ("step", request.generation, request.sequence)
            if scene.asked == asked:
                return scene.reply
            if (request.generation, request.sequence) != (scene.generation, scene.sequence):
                raise _stale(scene, request.generation, request.sequence)
            expert = self._expert(request) if request.HasField("expert") else None
            actions = self._actions(scene, request, expert is not None)
            self._check_reply(scene, actions.shape[1], request.frames)
            scene.reply = await scene.run(lambda: step(scene, actions, request.frames, expert))
            scene.asked = asked
            return scene.reply

    async def Choose(self, request: Any, context: Any) -> Any:
        scene = self.table.find(request.scene)
        async with scene.turn:
            asked = ("choose", request.generation, request.sequence, request.expert.random)
            if scene.asked == asked:
                return scene.reply
            if (request.generation, request.sequence) != (scene.generation, scene.sequence):
                raise _stale(scene, request.generation, request.sequence)
            expert = self._expert(request)
            scene.reply = await scene.run(lambda: choose(scene, *expert))
            scene.asked = asked
            return scene.reply

    def _expert(self, request: Any) -> tuple:
        if "expert" not in self.first.abilities:
            raise bad("this environment has no expert")
        return generator_of(request.expert.random), request.expert.noise

    def _actions(self, scene: Scene, request: Any, is_expert: bool) -> np.ndarray:
        actions = from_array(request.actions, "<f4", 3, "actions")
        num = 0 if is_expert else len(scene.environment.terminated)
        if actions.shape[0] != num or actions.shape[2] != self.first.action_dim:
            raise bad(f"actions of shape {list(actions.shape)}; [{num}, K, {self.first.action_dim}] is asked for")
        if not 1 <= actions.shape[1] <= MAX_STEPS:
            raise bad(f"{actions.shape[1]} steps at once; 1 to {MAX_STEPS} are made")
        if not np.isfinite(actions).all():
            raise bad("actions that are not finite")
        return actions

    def _check_reply(self, scene: Scene, length: int, frames: int) -> None:
        if frames not in (pb.NONE, pb.LAST, pb.ALL):
            raise bad(f"frames = {frames}: known are NONE, LAST and ALL")
        num_bytes = int(np.prod(self.first.frame_shape)) * len(scene.environment.terminated)
        if num_bytes * (length if frames == pb.ALL else 1) > 3 * self.bounds.message_bytes:
            raise bad(f"{length} frames of {len(scene.environment.terminated)} scenes are too many for an answer")

    async def Observe(self, request: Any, context: Any) -> Any:
        def look(scene: Scene) -> Any:
            reply = state_of(scene)
            reply.seen.CopyFrom(see(scene.environment))
            return reply

        return await self._as_it_is(request, look)

    async def Save(self, request: Any, context: Any) -> Any:
        if "restore" not in self.first.abilities:
            raise bad("this environment cannot save its scenes")
        return await self._as_it_is(request, lambda scene: pb.SceneReply(saved=scene.environment.save()))

    async def Read(self, request: Any, context: Any) -> Any:
        method = READERS.get(request.ability)
        if method is None or request.ability not in self.first.abilities:
            raise bad(f"this environment cannot read {request.ability[:32]!r}")
        if request.ability == "positions":
            return await self._as_it_is(
                request.scene, lambda scene: pb.ReadReply(values=to_named(_floats(scene.environment.positions())))
            )
        videos = from_array(request.videos, "|u1", len(request.videos.shape), "videos")
        if videos.ndim < 4 or videos.shape[-3:] != tuple(self.first.frame_shape):
            raise bad(f"videos of shape {list(videos.shape)}; [..., {self.first.frame_shape}] is asked for")
        more: tuple = ()
        if request.ability == "failures":
            more = (
                from_array(request.actions, "<f4", 3, "actions"),
                tuple(request.instructions),
                from_array(request.lengths, "<i8", 1, "lengths"),
            )
        scene = await self.table.find_or_make(request.scene.scene)
        async with scene.turn:
            found = await scene.run(lambda: getattr(scene.environment, method)(videos, *more))
        return pb.ReadReply(values=to_named(_floats(found) if request.ability == "locate" else found))

    async def _as_it_is(self, request: Any, work: Callable[[Scene], Any]) -> Any:
        scene = self.table.find(request.scene)
        async with scene.turn:
            if (request.generation, request.sequence) != (scene.generation, scene.sequence):
                raise _stale(scene, request.generation, request.sequence)
            return await scene.run(lambda: work(scene))


def _start(start: Any) -> Start:
    return Start(
        np.zeros((0, 0, 0, 3), np.uint8),
        start.instruction,
        start.seed if start.has_seed else None,
        start.task,
        start.saved_state if start.has_saved_state else None,
    )


def _stale(scene: Scene, generation: int, sequence: int) -> Refusal:
    return Refusal(
        "FAILED_PRECONDITION",
        "stale",
        f"asked of step {sequence} after reset {generation}; the scene is at step {scene.sequence} after reset {scene.generation}",
    )


def _floats(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, np.float64) for name, values in arrays.items()}


async def start_server(
    service: EnvironmentService, listen: str, lock: Lock, count: Refusals | None = None
) -> tuple[Any, int]:
    """(server, port); needs a running event loop. Raises ClientError."""
    server = make_server(lock, service.bounds, count or Refusals())
    rpc.add_EnvironmentsServicer_to_server(service, server)
    await add_health_and_reflection(server, [SERVICE])
    port = open_door(server, listen, lock)
    await server.start()
    return server, port


def serve(
    make: Callable[[], Any],
    listen: str,
    instructions: Sequence[str] = (),
    lock: Lock | None = None,
    settings: Mapping[str, Any] | None = None,
    ready: Callable[[int], None] = lambda port: print(f"the simulator listens on port {port}", flush=True),
) -> None:
    """Serve until SIGINT or SIGTERM. lock: by default the token of this user, made where there is none."""

    async def run() -> None:
        service = EnvironmentService(make, instructions, settings)
        server, port = await start_server(service, listen, lock or Lock(require_token()))
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        ready(port)
        await ended.wait()
        await server.stop(1.0)
        service.table.close()

    asyncio.run(run())
