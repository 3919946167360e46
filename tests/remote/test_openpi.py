"""openpi's protocol: its published client is answered as our own is, and what it could be sent costs nothing."""

from __future__ import annotations

import asyncio
import random
import tracemalloc

import msgpack
import numpy as np
import pytest

pytest.importorskip("websockets", minversion="13")
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from tests.support.certificates import certificates
from tests.support.documents import ROOT, commands_of
from tests.support.remote_servers import TOKEN
from tests.support.served_policies import ServedTiny, expected, seen
from wmpo_client.refusals import ClientError, Refusal
from wmpo_client.serving.locked_server import Bounds, Lock
from wmpo_ray.remote.openpi_messages import observation_of, pack, unpack
from wmpo_ray.remote.openpi_server import OpenpiServer

MESSAGE_BYTES = 2**18
PAGE = ROOT / "docs" / "robot.md"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    bounds = Bounds(message_bytes=MESSAGE_BYTES, connections=4)
    with ServedTiny(tmp_path_factory.mktemp("openpi"), openpi="127.0.0.1:0", bounds=bounds) as server:
        yield server


def url(server) -> str:
    return f"ws://127.0.0.1:{server.inside.openpi_port}"


def opened(server, token: str = f"Api-Key {TOKEN}"):
    return connect(url(server), compression=None, additional_headers={"Authorization": token})


def message(value: int = 0, **changes) -> dict:
    view = seen(value)
    return {"observation/image": view.images["main"], "prompt": view.instruction, **changes}


def test_openpis_own_client_is_answered_what_the_policy_decides(served):
    """The client of PyPI, with its own chunk broker on top, which gives out an action at a time."""
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    robot = client.WebsocketClientPolicy("127.0.0.1", served.inside.openpi_port, api_key=TOKEN)
    facts, episode = robot.get_server_metadata(), served.inside.openpi._num_connections
    assert (facts["chunk_length"], facts["action_dims"], facts["frame_height"]) == (4, 3, 16)
    assert facts["policy_version"]["num_updates"] == 7
    answer = robot.infer(message(1))
    assert (
        np.array_equal(answer["actions"], expected(seen(1), "openpi", episode, 1))
        and answer["actions"].dtype == np.float32
    )
    assert answer["policy_version"]["num_updates"] == 7 and answer["server_timing"]["infer_ms"] > 0
    single = broker.ActionChunkBroker(robot, action_horizon=4)
    given = np.stack([single.infer(message(2))["actions"] for _ in range(4)])
    assert np.array_equal(given, expected(seen(2), "openpi", episode, 2))
    with pytest.raises(RuntimeError, match="none that the policy knows"):
        robot.infer(message(1, prompt="fold the towel"))
    assert robot.infer(message(3))["actions"].shape == (4, 3), "what was refused ends nothing"
    robot._ws.close()


def test_the_page_of_robots_asks_with_openpis_client(served):
    pytest.importorskip("openpi_client")
    marker = "tests/remote/test_openpi.py::test_the_page_of_robots_asks_with_openpis_client"
    code = "\n".join(commands_of(PAGE, marker))
    view = seen(1)
    names = {"TOKEN": TOKEN, "image": view.images["main"], "state": np.zeros(3), "text": view.instruction}
    exec(code.replace("8000", str(served.inside.openpi_port)), names)  # noqa: S102  the page's own code
    assert names["actions"].shape == (4, 3)
    names["policy"]._ws.close()


def test_health_answers_who_has_the_token_and_nobody_else_comes_in(served):
    before = served.refused("token")
    wrong = ("", "Api-Key ", "Api-Key a-wrong-token-0123456789", TOKEN, f"api-key {TOKEN}", f"Basic {TOKEN}")
    for token in wrong:
        with pytest.raises(InvalidStatus, match="401"):
            opened(served, token)
    for path, token, status in (("/healthz", f"Bearer {TOKEN}", 200), ("/healthz", "", 401)):
        with pytest.raises(InvalidStatus) as answered:
            connect(url(served) + path, additional_headers={"Authorization": token})
        assert answered.value.response.status_code == status
    assert served.refused("token") == before + len(wrong) + 1


def test_who_leaves_is_forgotten_and_more_than_the_bound_are_not_let_in(served):
    robots = [opened(served) for _ in range(4)]
    for robot in robots:
        robot.recv()
    with pytest.raises((OSError, WebSocketException)):
        opened(served).recv()
    for robot in robots:
        robot.close()
    until = 200
    while len(served.inside.service.sessions) and (until := until - 1):
        served.run(asyncio.sleep(0.01))
    assert not len(served.inside.service.sessions)


def test_an_oversized_message_ends_its_connection_and_others_are_served(served):
    before = served.refused("too_large")
    with opened(served) as one, opened(served) as other:
        one.recv(), other.recv()
        with pytest.raises(ConnectionClosed):
            one.send(bytes(MESSAGE_BYTES + 1))
            one.recv()
        other.send(pack(message(1)))
        assert unpack(other.recv())["actions"].shape == (4, 3)
    assert served.refused("too_large") == before + 1


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.org:80"])
def test_beyond_loopback_it_listens_only_with_tls(listen):
    door = OpenpiServer(None, Lock(TOKEN), Bounds(), print)
    with pytest.raises(ClientError, match="--openpi .* without TLS the token would be read on the way"):
        asyncio.run(door.start(listen))
    with pytest.raises(ClientError, match="only with a token"):
        asyncio.run(OpenpiServer(None, Lock(""), Bounds(), print).start("127.0.0.1:0"))


def test_openpis_client_reaches_it_by_tls(tmp_path, monkeypatch):
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    own = certificates(tmp_path / "own")
    lock = Lock(TOKEN, own / "tls.crt", own / "tls.key")
    with ServedTiny(tmp_path, openpi="127.0.0.1:0", lock=lock) as server:
        with pytest.raises((OSError, WebSocketException)):
            opened(server)
        monkeypatch.setenv("SSL_CERT_FILE", str(own / "ca.crt"))
        robot = client.WebsocketClientPolicy("wss://127.0.0.1", server.inside.openpi_port, api_key=TOKEN)
        assert robot.infer(message())["actions"].shape == (4, 3)
        robot._ws.close()


# -- what a message may be -----------------------------------------------------------------------------------------------


def test_every_key_says_by_its_value_what_it_is():
    first, second = (np.random.default_rng(n).integers(0, 255, (4, 5, 3)).astype(np.uint8) for n in (0, 1))
    sent = {
        "images": {"high": first.transpose(2, 0, 1), "wrist": second},
        "state": np.array([1, 2], np.float64),
        "gripper": np.float32(3),
        "flag": True,
        "more": [4, 5.5],
        "comment": "for another policy",
    }
    found = observation_of(_through_the_wire(sent), ("push",))
    assert [image.camera for image in found.images] == ["images/high", "images/wrist"]
    assert [image.data for image in found.images] == [first.tobytes(), second.tobytes()]
    assert list(found.state) == [1, 2, 3, 1, 4, 5.5] and found.instruction == "push"
    assert observation_of({"i": first, "prompt": "pull"}, ("push", "pull")).instruction == "pull"


def _through_the_wire(sent: dict) -> dict:
    """As openpi's client packs it."""

    def packed(value):
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    return unpack(msgpack.packb(sent, default=packed))


IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({}, "no image"),
        ({"i": IMAGE}, "no prompt"),
        ({"i": IMAGE.astype(np.float32)}, "an image is"),
        ({"i": np.zeros((1, 4, 4, 3), np.uint8)}, "an image is"),
        ({f"c{n}": IMAGE for n in range(9)}, "more than 8 images"),
        ({"i": IMAGE, "s": np.zeros(2000)}, "up to 1024 numbers"),
        ({"i": IMAGE, "s": [[1]]}, "neither an image"),
        ({"i": IMAGE, "s": b"bytes"}, "neither an image"),
        ({"i": IMAGE, "s": None}, "neither an image"),
        ({"i": IMAGE, 5: 1.0}, "a key that is no short text"),
    ],
)
def test_an_observation_that_is_none_is_refused(sent, problem):
    with pytest.raises(Refusal, match=problem):
        observation_of(_through_the_wire(sent), ())


def _array(dtype="|u1", shape=(4,), data=b"abcd") -> bytes:
    return msgpack.packb({"a": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})


@pytest.mark.parametrize(
    "data",
    [
        _array(dtype="|O"),
        _array(dtype="|V4"),
        _array(dtype="<M8[s]"),
        _array(dtype="u1,u1"),
        _array(shape=(2**40, 2**40)),
        _array(shape=(-4,)),
        _array(shape=(1,) * 5),
        _array(shape=4),
        _array(data="text"),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": b"x"}}),
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        msgpack.packb([1, 2]),
        msgpack.packb({"a": [[]] * 300}),
        b"\xdd\xff\xff\xff\xff" * 100,  # lists of four billion
        b"\xdc\x04\x00" * 20_000,  # lists of 1,024 in each other
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",  # four gigabytes of bytes
        b"\x81\xdc\x04\x00" + bytes(1024) + b"\x01",  # a list as a key
        b"\x81\xa2\xff\xff\x01",
        b"",
    ],
)
def test_a_hostile_message_is_refused_before_it_takes_memory(data):
    tracemalloc.start()
    try:
        with pytest.raises(Refusal):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_mutated_messages_are_read_or_refused():
    chosen, whole = random.Random(0), pack(message(1, state=np.arange(3.0)))
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chosen.randrange(1, 6)):
            data[chosen.choice((chosen.randrange(64), chosen.randrange(len(data))))] = chosen.randrange(256)
        try:
            observation_of(unpack(bytes(data)), ())
        except Refusal:
            pass
