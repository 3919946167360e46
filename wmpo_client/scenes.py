"""A simulator behind an address, as a robot program or `environment.kind = "remote"` steps it; no step is made twice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from wmpo_client.arrays import from_array, from_named, to_array
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError
from wmpo_client.server_connection import Connection, code_of, details_of

MAX_LOSSES = 3  # of a question: a simulator that is lost more often than it answers is broken


@dataclass(frozen=True)
class SceneView:
    """What N scenes show."""

    images: dict[str, np.ndarray]  # camera -> [N, H, W, 3] uint8, the main camera first
    instructions: tuple[str, ...]  # [N]
    state: np.ndarray | None  # [N, S] float32


@dataclass(frozen=True)
class SceneStep:
    """What some steps did."""

    num_steps: np.ndarray  # [N] int64: made before the end of each scene
    view: SceneView | None  # after them
    frames: np.ndarray | None  # [N, K - 1, H, W, 3] uint8: after each step but the last
    actions: np.ndarray | None  # [N, K, D] float32 of the expert


class Scenes:
    """N scenes under a name of their own. Raises ClientError where the simulator refuses, or does not answer in time.

    What was cut off on its way is asked again, for `patience_s`. A simulator that has begun anew has lost its scenes: they
    are placed there again and what was done in them since is done again, `MAX_LOSSES` times for a single question.
    """

    def __init__(self, connection: Connection, call_s: float = 120.0, patience_s: float = 30.0):
        self.connection, self.call_s, self.patience_s = connection, call_s, patience_s
        self._stub = rpc.EnvironmentsStub(connection.channel)
        self._name, self._generation, self._sequence = uuid.uuid4().hex, 0, 0
        self._placed: Any = None  # the request that placed the scenes
        self._done: list[tuple[Any, Any]] = []  # (method, request) of all that changed them since
        self.num_losses = 0
        self.terminated = self.success = np.zeros(0, bool)  # [N]
        self.failures: dict[str, np.ndarray] = {}  # name -> [N] bool

    def capabilities(self) -> Any:
        """The CapabilitiesReply of the simulator."""
        return self._ask(self._stub.Capabilities, pb.CapabilitiesRequest())

    def reset(self, starts: Sequence[Any]) -> None:
        """Place a scene for each start, which has `seed`, `saved_state`, `task` and `instruction`."""
        self._generation += 1
        request = pb.SceneResetRequest(
            scene=self._name, generation=self._generation, starts=[_start(start) for start in starts]
        )
        self._take(self._ask(self._stub.Reset, request))
        self._placed, self._done = request, []

    def step(self, actions: np.ndarray, frames: int = pb.NONE) -> SceneStep:
        """actions [N, K, D] in [-1, 1]."""
        return self._stepped(pb.SceneStepRequest(actions=to_array(np.asarray(actions, "<f4")), frames=frames))

    def step_expert(
        self, rng: np.random.Generator, noise: float, length: int, action_dim: int, frames: int = pb.NONE
    ) -> SceneStep:
        """Let the simulator's script act; it draws from `rng` as it would here."""
        request = pb.SceneStepRequest(
            actions=to_array(np.zeros((0, length, action_dim), "<f4")), frames=frames, expert=_expert(rng, noise)
        )
        made, state = self._stepped_by(request)
        rng.bit_generator.state = json.loads(state)
        return made

    def choose_as_expert(self, rng: np.random.Generator, noise: float) -> np.ndarray:
        """The script's next actions [N, D], which are not made."""
        request = pb.SceneStepRequest(expert=_expert(rng, noise))
        reply = self._change(self._stub.Choose, request)
        rng.bit_generator.state = json.loads(reply.random)
        return from_array(reply.actions, "<f4", 3, "actions")[:, 0].copy()

    def observe(self) -> SceneView:
        return _view(self._look(self._stub.Observe, self._present()).seen)

    def save(self) -> list[bytes]:
        return list(self._look(self._stub.Save, self._present()).saved)

    def read(self, ability: str, **more: Any) -> dict[str, np.ndarray]:
        """What `ability` reads, by name; more: fields of the ReadRequest."""
        present = self._present()
        request = pb.ReadRequest(scene=present, ability=ability, **more)
        reply = self._look(self._stub.Read, request, request.scene)
        return {name: values.copy() for name, values in from_named(reply.values, None, None).items()}

    def _present(self) -> Any:
        return pb.SceneRequest(scene=self._name, generation=self._generation, sequence=self._sequence)

    def _stepped(self, request: Any) -> SceneStep:
        return self._stepped_by(request)[0]

    def _stepped_by(self, request: Any) -> tuple[SceneStep, str]:
        reply = self._change(self._stub.Step, request)
        self._take(reply)
        made = SceneStep(
            from_array(reply.num_steps, "<i8", 1, "num_steps"),
            _view(reply.seen) if reply.HasField("seen") else None,
            from_array(reply.frames, "|u1", 5, "frames") if reply.HasField("frames") else None,
            from_array(reply.actions, "<f4", 3, "actions") if reply.HasField("actions") else None,
        )
        return made, reply.random

    def _take(self, reply: Any) -> None:
        self._sequence = reply.sequence
        self.terminated = from_array(reply.terminated, "|b1", 1, "terminated").copy()
        self.success = from_array(reply.success, "|b1", 1, "success").copy()
        self.failures = {name: flags.copy() for name, flags in from_named(reply.failures, "|b1", 1).items()}

    def _change(self, method: Any, request: Any) -> Any:
        """Ask for what changes the scenes, and remember it."""
        request.scene, request.generation, request.sequence = self._name, self._generation, self._sequence
        reply = self._look(method, request)
        self._done.append((method, request))
        return reply

    def _look(self, method: Any, request: Any, scene: Any = None) -> Any:
        """Ask about the scenes, which are placed again where they were lost. scene: the part of the request that names them."""
        scene = request if scene is None else scene
        for _ in range(MAX_LOSSES):
            try:
                return self._call(method, request)
            except grpc.RpcError as error:
                if code_of(error) != "NOT_FOUND" or self._placed is None:
                    raise self._explained(error) from error
            self.num_losses += 1
            self._place_again()
            scene.generation = self._generation
        return self._ask(method, request)

    def _place_again(self) -> None:
        """Raises ClientError where that does not lead to where the scenes were."""
        before = (self.terminated, self.success)
        self._generation += 1
        for method, request in [(self._stub.Reset, self._placed), *self._done]:
            request.generation = self._generation
            reply = self._ask(method, request)
            self._take(reply)
        if not all(np.array_equal(one, other) for one, other in zip(before, (self.terminated, self.success))):
            raise ClientError(
                f"the simulator at {self.connection.address.target} has lost its scenes, and what was done in them leads "
                "elsewhere now: it does not repeat itself, or is another one"
            )

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return self._call(method, request)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _call(self, method: Any, request: Any) -> Any:
        return self.connection.call_again(method, request, self.call_s, self.patience_s)

    def _explained(self, error: grpc.RpcError) -> ClientError:
        return ClientError(f"the simulator at {self.connection.address.target}: {details_of(error)}")


def _expert(rng: np.random.Generator, noise: float) -> Any:
    return pb.Expert(random=json.dumps(rng.bit_generator.state), noise=noise)


def _start(start: Any) -> Any:
    saved = start.saved_state
    return pb.StartState(
        seed=int(start.seed or 0),
        has_seed=start.seed is not None,
        task=start.task,
        instruction=start.instruction,
        saved_state=saved or b"",
        has_saved_state=saved is not None,
    )


def _view(seen: Any) -> SceneView:
    images = from_named(seen.images, "|u1", 4)
    state = from_array(seen.state, "<f4", 2, "state") if seen.HasField("state") else None
    return SceneView({name: each.copy() for name, each in images.items()}, tuple(seen.instructions), state)
