"""LeRobot's client through the bridge: the policy's own decisions, and no pickle that does anything.

LeRobot itself is asked in an environment of its own: `make check-lerobot`.
"""

from __future__ import annotations

import pickle
import struct
import sys
from dataclasses import dataclass, field
from types import ModuleType

import grpc
import numpy as np
import pytest
import torch

from tests.support.served_policies import ServedTiny, expected, seen
from wmpo_client.lerobot_bridge import SERVICE, BridgeOptions, LeRobotBridge, _messages, start_bridge
from wmpo_client.plain_pickle import HELPERS, read_plain
from wmpo_client.refusals import ClientError, Refusal
from wmpo_client.served_policy import ServedPolicy

PIECE, WHOLE = _messages()


@pytest.fixture(scope="module")
def helpers():
    """Classes as LeRobot's, under their name: what a pickle says of them is the same."""
    module = ModuleType(HELPERS)

    @dataclass
    class TimedAction:
        timestamp: float
        timestep: int
        action: torch.Tensor

    @dataclass
    class TimedObservation:
        timestamp: float
        timestep: int
        observation: dict
        must_go: bool = False

    @dataclass
    class RemotePolicyConfig:
        policy_type: str
        pretrained_name_or_path: str
        lerobot_features: dict
        actions_per_chunk: int
        device: str = "cpu"
        rename_map: dict = field(default_factory=dict)

    for each in (TimedAction, TimedObservation, RemotePolicyConfig):
        each.__module__, each.__qualname__ = HELPERS, each.__name__
        setattr(module, each.__name__, each)
    module.torch = torch
    with pytest.MonkeyPatch.context() as patched:
        for name in (HELPERS, "lerobot.async_inference", "lerobot"):
            patched.setitem(sys.modules, name, module)
        yield module


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with ServedTiny(tmp_path_factory.mktemp("bridged")) as server:
        yield server


class Client:
    """What LeRobot's RobotClient sends."""

    def __init__(self, port: int):
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def call(self, method: str, data: bytes = b"") -> bytes:
        return self._channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)

    def instruct(self, config: object) -> None:
        self.call("SendPolicyInstructions", WHOLE(data=pickle.dumps(config)).SerializeToString())

    def observe(self, data: bytes) -> None:
        pieces = [
            PIECE(transfer_state=2, data=data[at : at + 500]).SerializeToString() for at in range(0, len(data), 500)
        ]
        self._channel.stream_unary(f"/{SERVICE}/SendObservations")(iter(pieces), timeout=20)

    def actions(self) -> list:
        data = WHOLE.FromString(self.call("GetActions")).data
        return pickle.loads(data) if data else []


def bridged(served, helpers, robot: str, **options):
    return LeRobotBridge(ServedPolicy(served.connection(), robot, patience_s=5.0), BridgeOptions(**options), helpers)


def observation(helpers, value: int, step: int = 0, must_go: bool = True, **changes) -> bytes:
    view = seen(value)
    values = {"front": view.images["main"], "x.pos": 1.0, "y.pos": np.float32(2), "task": view.instruction, **changes}
    return pickle.dumps(helpers.TimedObservation(100.0, step, values, must_go))


def test_lerobots_client_gets_the_policys_decisions_with_their_times(served, helpers):
    server, port = start_bridge(bridged(served, helpers, "so100", fps=10), "127.0.0.1:0")
    try:
        client = Client(port)
        client.call("Ready")
        names = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["x.pos", "y.pos"]}}
        client.instruct(helpers.RemotePolicyConfig("act", "somebody/model", names, 3))
        client.observe(observation(helpers, 4, step=7))
        made = client.actions()
        assert np.array_equal(np.stack([each.action for each in made]), expected(seen(4), "so100", 1, 1)[:3])
        assert [each.timestep for each in made] == [7, 8, 9]
        assert [each.timestamp for each in made] == pytest.approx([100.0, 100.1, 100.2])
        client.call("Ready")  # begins again: another episode
        client.observe(observation(helpers, 5))
        assert np.array_equal(client.actions()[0].action, expected(seen(5), "so100", 2, 1)[0])
        with pytest.raises(grpc.RpcError, match="which no message of LeRobot's client needs"):
            client.observe(pickle.dumps(print))
        client.observe(observation(helpers, 5, 1, task="fold the towel"))
        with pytest.raises(grpc.RpcError, match="none that the policy knows"):
            client.actions()
    finally:
        server.stop(0)


def test_the_newest_observation_counts_and_a_step_is_decided_on_once(served, helpers):
    bridge = bridged(served, helpers, "r", low=(0, 0, 0), high=(100, 10, 1))
    bridge.ready()
    assert bridge.act(wait_s=0.01) == b"", "nothing was observed"
    for value in (1, 2):
        bridge.observe(observation(helpers, value))
    made = np.stack([each.action for each in pickle.loads(bridge.act(1.0))])
    decided = expected(seen(2), "r", 1, 1)
    assert np.allclose(made, (decided + 1) / 2 * [100, 10, 1], atol=1e-4)
    bridge.observe(observation(helpers, 3, must_go=False))
    assert bridge.act(0.01) == b"", "step 0 was decided on, and the client has actions left"
    bridge.observe(observation(helpers, 3, must_go=True))
    assert bridge.act(1.0)


def test_cameras_of_another_size_are_resized_and_the_main_one_is_named(served, helpers):
    bridge = bridged(served, helpers, "r2", camera="wrist")
    views = {"front": np.zeros((8, 8, 3), np.uint8), "wrist": np.full((48, 64, 3), 9, np.uint8), "task": "t"}
    found = bridge._seen({**views, "x": 1.0})
    assert list(found.images) == ["wrist", "front"] and (found.images["wrist"] == 9).all()
    assert {each.shape for each in found.images.values()} == {(16, 16, 3)} and found.state.tolist() == [1.0]
    with pytest.raises(Refusal, match="no camera 'side' among front, wrist"):
        bridged(served, helpers, "r3", camera="side")._seen(views)
    with pytest.raises(Refusal, match=r"\[H, W, 3\] uint8"):
        bridge._seen({"wrist": np.zeros((4, 4, 1), np.uint8)})


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:8080", "[::]:0"])
def test_the_bridge_is_reached_from_its_own_machine_alone(listen):
    with pytest.raises(ClientError, match="has no token and sends pickles"):
        start_bridge(None, listen)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_and_numbers_of_every_protocol_are_read(helpers, protocol):
    sent = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "f": np.asfortranarray(np.ones((2, 3))),
        "s": np.float32(2),
    }
    sent |= {"t": (1, 2.5, None, True, "x"), "d": {"e": []}}
    found = read_plain(pickle.dumps(helpers.TimedObservation(1.0, 2, sent), protocol))["observation"]
    assert np.array_equal(found["a"], sent["a"]) and np.array_equal(found["f"], sent["f"])
    assert (found["s"], found["t"], found["d"]) == (2.0, [1, 2.5, None, True, "x"], {"e": []})


class Calls:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def named(name: bytes) -> bytes:
    return b"\x80\x02c" + name + b"\n."


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Calls(eval, ("1+1",))),
        pickle.dumps(Calls(getattr, (str, "format"))),
        named(b"os\nsystem"),
        named(b"builtins\neval"),
        named(b"numpy\nload"),
        named(b"torch\nload"),
        pickle.dumps(np.array([object], object)),
        pickle.dumps(np.zeros(3)),
        pickle.dumps({"a": 1}),
        pickle.dumps(5, 0),
        b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b".",  # bytes of a terabyte
        b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".",  # a place of the memo that is far away
        b"\x80\x02" + b"N0" * 15_000 + b"N.",
        b"\x80\x02" + b"]" * 15_000 + b"a" * 14_999 + b".",
        b"\x80\x02P1\n.",
        b"\x80\x02\x82\x01.",
        b"",
        b"\x80",
    ],
)
def test_a_pickle_that_is_no_message_is_refused_and_does_nothing(data):
    with pytest.raises(Refusal):
        read_plain(data)


@pytest.mark.parametrize(
    "state",
    [
        (1, (2**30, 2**30), "u1", False, b"ab"),
        (1, (2,), "O8", False, b"ab"),
        (1, (-2,), "u1", False, b"ab"),
        (1, (2,), "u1", False, [1, 2]),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(helpers, state):
    version, shape, code, order, data = state
    whole = pickle.dumps(helpers.TimedObservation(1.0, 2, {"a": np.zeros(2, np.uint8)}), 3)
    assert read_plain(whole)
    own = np.zeros(2, np.uint8).__reduce__()
    dtype = Calls(np.dtype, (code, False, True), (3, "|", None, None, None, -1, -1, 0))
    forged = Calls(own[0], own[1], (version, shape, dtype, order, data))
    with pytest.raises(Refusal):
        read_plain(pickle.dumps(helpers.TimedObservation(1.0, 2, {"a": forged}), 3))
