"""LeRobot's asynchronous inference on the robot's own machine, answered by a policy server of ours.

LeRobot's robot client and policy server send each other pickles, which are programs: whoever can reach such a server runs
what they like on it. So the server of ours never reads one. This bridge runs beside LeRobot's client, in its Python, is
reached from this machine alone, reads what the client sends with an empty toolbox (`plain_pickle`), asks our server over
TLS with the token, and gives the client what it expects: a pickle, which is made here.
"""

from __future__ import annotations

import importlib
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from wmpo_client.plain_pickle import HELPERS, read_plain
from wmpo_client.refusals import ClientError, Refusal, bad
from wmpo_client.served_policy import Chunk, Seen, ServedPolicy
from wmpo_client.server_connection import is_loopback, split_target

SERVICE = "transport.AsyncInference"
MAX_PICKLE_BYTES = 64 * 2**20  # of an observation
MAX_PIECE_BYTES = 4 * 2**20  # of a message, as LeRobot's own
OBSERVATION_WAIT_S = 2.0  # as LeRobot's server waits for one


@dataclass(frozen=True)
class BridgeOptions:
    """camera: the main one; "": the first that the robot has. fps: of the robot's actions.

    low, high: the robot's values at -1 and 1 of the policy, for each dimension; None: the policy's own.
    """

    camera: str = ""
    fps: float = 30.0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass
class _Observed:
    """An observation that waits to be decided on; time and number are the client's."""

    values: dict[str, Any]
    timestamp: float
    timestep: int


class LeRobotBridge:
    """Answers one LeRobot client at a time; the newest observation replaces one that waits.

    helpers: LeRobot's module of that name, which holds `TimedAction` and torch.
    """

    def __init__(self, policy: ServedPolicy, options: BridgeOptions, helpers: Any):
        self.policy, self.options, self._helpers = policy, options, helpers
        self._changed = threading.Condition()
        self._waiting: _Observed | None = None
        self._decided: set[int] = set()
        self._acting = threading.Lock()
        self._episode, self._chunk_actions = 0, 0
        self._names: list[str] = []

    def ready(self) -> None:
        """A client begins: an episode of its own."""
        with self._acting, self._changed:
            self._waiting, self._decided = None, set()
            self._episode += 1
            self.policy.begin_episode(self._episode)

    def instruct(self, data: bytes) -> None:
        """Which policy it is the server knows; what counts here is how the robot names its parts."""
        wanted = read_plain(data)
        num, features = wanted.get("actions_per_chunk"), wanted.get("lerobot_features")
        if type(num) is not int or num < 1:
            raise bad("instructions without actions_per_chunk")
        state = features.get("observation.state", {}) if isinstance(features, dict) else {}
        names = state.get("names", []) if isinstance(state, dict) else []
        self._chunk_actions = num
        self._names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def observe(self, data: bytes) -> None:
        """The newest observation; one of a step that was decided on counts only where the client has nothing left."""
        sent = read_plain(data)
        values, step, seconds = sent.get("observation"), sent.get("timestep"), sent.get("timestamp")
        if not isinstance(values, dict) or type(step) is not int or not isinstance(seconds, float):
            raise bad("an observation without values, step or time")
        with self._changed:
            if step in self._decided and not sent.get("must_go"):
                return
            self._waiting = _Observed(values, seconds, step)
            self._changed.notify_all()

    def act(self, wait_s: float = OBSERVATION_WAIT_S) -> bytes:
        """A pickle of the next chunk as a list of `TimedAction`; empty: nothing was observed. Raises ClientError."""
        with self._acting:
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting is not None, wait_s):
                    return b""
                seen, self._waiting = self._waiting, None
                assert seen is not None
                self._decided.add(seen.timestep)
            return self._pickled(self.policy.act(self._seen(seen.values)), seen)

    def _seen(self, values: dict[str, Any]) -> Seen:
        images = {name: each for name, each in values.items() if isinstance(each, np.ndarray) and each.ndim == 3}
        main = self.options.camera or next(iter(images), "")
        if main not in images:
            raise bad(f"no camera {main!r} among {', '.join(images) or 'none'}; name one with --camera")
        ordered = {main: self._frame(main, images[main])}
        ordered.update({name: self._frame(name, each) for name, each in images.items() if name != main})
        numbers = {name: each for name, each in values.items() if isinstance(each, (int, float))}
        names = self._names if set(self._names) <= set(numbers) and self._names else list(numbers)
        state = np.array([numbers[name] for name in names], np.float32) if names else None
        task = values.get("task")
        return Seen(ordered, task if isinstance(task, str) else "", state)

    def _frame(self, name: str, image: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 as the policy sees it, resized where the camera has another size."""
        if image.dtype != np.uint8 or image.shape[2] != 3 or 0 in image.shape:
            raise bad(f"camera {name[:60]} shows {image.dtype} {list(image.shape)}; [H, W, 3] uint8 is asked for")
        height, width = self.policy.facts.frame_height, self.policy.facts.frame_width
        if image.shape[:2] == (height, width):
            return image
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def _pickled(self, chunk: Chunk, seen: _Observed) -> bytes:
        actions = self._scaled(chunk.actions[: self._chunk_actions or None])
        made = [
            self._helpers.TimedAction(
                timestamp=seen.timestamp + index / self.options.fps,
                timestep=seen.timestep + index,
                action=self._helpers.torch.from_numpy(action.copy()),
            )
            for index, action in enumerate(actions)
        ]
        return pickle.dumps(made)

    def _scaled(self, actions: np.ndarray) -> np.ndarray:
        if self.options.low is None or self.options.high is None:
            return actions
        low, high = np.asarray(self.options.low, np.float32), np.asarray(self.options.high, np.float32)
        return low + (actions + 1) / 2 * (high - low)


class _Handlers(grpc.GenericRpcHandler):
    """The four methods, by their wire format: LeRobot's own compiled code would claim their names in this process."""

    def __init__(self, bridge: LeRobotBridge):
        self.bridge = bridge
        piece, whole = _messages()
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        empty = b""

        def observe(pieces: Iterator[Any], context: Any) -> bytes:
            data = bytearray()
            for each in pieces:
                data += each.data
                if len(data) > MAX_PICKLE_BYTES:
                    raise bad(f"an observation of more than {MAX_PICKLE_BYTES} bytes")
            bridge.observe(bytes(data))
            return empty

        def instruct(request: Any, context: Any) -> bytes:
            bridge.instruct(request.data)
            return empty

        def ready(request: Any, context: Any) -> bytes:
            bridge.ready()
            return empty

        def act(request: Any, context: Any) -> bytes:
            return whole(data=bridge.act()).SerializeToString()

        self._methods = {
            f"/{SERVICE}/Ready": unary(_explained(ready)),
            f"/{SERVICE}/SendPolicyInstructions": unary(_explained(instruct), whole.FromString),
            f"/{SERVICE}/SendObservations": stream(_explained(observe), piece.FromString),
            f"/{SERVICE}/GetActions": unary(_explained(act)),
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


def _explained(method: Any) -> Any:
    """What is refused becomes a status code with a reason."""

    def answer(request: Any, context: Any) -> Any:
        try:
            return method(request, context)
        except Refusal as refusal:
            return context.abort(grpc.StatusCode[refusal.code], str(refusal))
        except ClientError as error:
            return context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    return answer


def _messages() -> tuple[Any, Any]:
    """(piece of a stream, whole message): what LeRobot's `services.proto` lays out for them."""
    file = descriptor_pb2.FileDescriptorProto(name="wmpo_lerobot.proto", package="wmpo.lerobot", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in (
        ("Piece", (("transfer_state", 1, kinds.TYPE_INT32), ("data", 2, kinds.TYPE_BYTES))),
        ("Whole", (("data", 1, kinds.TYPE_BYTES),)),
    ):
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    made = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"wmpo.lerobot.{name}"))
        for name in ("Piece", "Whole")
    ]
    return made[0], made[1]


def start_bridge(bridge: LeRobotBridge, listen: str) -> tuple[grpc.Server, int]:
    """(server, port): it listens when this returns. Raises ClientError for an address beyond this machine."""
    host, port = split_target(listen, "--listen")
    if not is_loopback(host):
        raise ClientError(
            f"--listen {listen} can be reached from other machines; LeRobot's client has no token and sends pickles, so the "
            "bridge runs on the robot's own machine, on 127.0.0.1"
        )
    options = [("grpc.max_receive_message_length", MAX_PIECE_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(4), (_Handlers(bridge),), options=options, maximum_concurrent_rpcs=8)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ClientError(f"--listen {listen} cannot be had: is it taken? Choose another")
    server.start()
    return server, bound


def lerobot_helpers() -> Any:
    """LeRobot's own module. Raises ClientError where it is not installed in this Python."""
    try:
        return importlib.import_module(HELPERS)
    except ImportError as error:
        raise ClientError(f"the bridge runs in LeRobot's Python, and this one misses {error.name}") from error
