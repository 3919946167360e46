"""Who may come in, and what whoever may not can cost."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest

from benchmarks.robots.doors import open_doors
from benchmarks.robots.fuzzed_messages import crashes, seeds_of_messages, send_all
from tests.support.certificates import certificates
from tests.support.remote_servers import TOKEN, serve_environment
from tests.support.served_policies import ServedTiny, seen
from wmpo_client import token_file
from wmpo_client.arrays import to_array
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError, Refusal
from wmpo_client.scenes import Scenes
from wmpo_client.sent_images import decode_image, encode_image
from wmpo_client.served_policy import ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_client.serving.locked_server import Bounds, Lock, Refusals, open_door
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.remote.session_table import SessionTable


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    bounds = Bounds(message_bytes=2**20, message_s=0.5)
    with ServedTiny(folder, folder / "robot", bounds=bounds) as server:
        yield server


def test_every_door_is_closed_without_the_token(served):
    before = served.refused("token")
    found, tried = open_doors(served.target, TOKEN)
    assert found == [] and served.refused("token") == before + tried


def test_every_door_of_a_simulator_is_closed_without_the_token():
    refusals = Refusals()
    with serve_environment(lambda: PocketEnvironment(8), refusals) as simulator:
        found, tried = open_doors(simulator.target, TOKEN)
    assert found == [] and refusals.counts() == {"token": tried}


def test_with_the_token_health_and_reflection_answer(served):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    connection = served.connection()
    health = health_pb2_grpc.HealthStub(connection.channel)
    for service in ("", "wmpo.v1.Policy", "wmpo.v1.Episodes"):
        reply = connection.call(health.Check, health_pb2.HealthCheckRequest(service=service), 10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(connection.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (reply,) = stub.ServerReflectionInfo(asked, timeout=10, metadata=connection._metadata)
    names = {service.name for service in reply.list_services_response.service}
    assert names >= {"wmpo.v1.Policy", "wmpo.v1.Episodes", "grpc.health.v1.Health"}


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:80", "[::]:0", "example.org:80"])
def test_beyond_loopback_a_server_listens_only_with_tls(listen):
    async def attempt() -> None:
        open_door(grpc.aio.server(), listen, Lock(TOKEN))

    with pytest.raises(ClientError, match="without TLS the token would be read on the way"):
        asyncio.run(attempt())


def test_a_server_has_a_token_and_a_free_address(served):
    async def attempt(listen: str, token: str) -> None:
        open_door(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), listen, Lock(token))

    with pytest.raises(ClientError, match="only with a token"):
        asyncio.run(attempt("127.0.0.1:0", ""))
    with pytest.raises(ClientError, match="is it taken"):
        asyncio.run(attempt(served.target, TOKEN))


def test_a_client_sends_its_token_to_nobody_in_clear_text():
    with pytest.raises(ClientError, match="is not on this machine, and without TLS"):
        Connection(Address("192.0.2.1:7410", token=TOKEN))


# -- TLS -----------------------------------------------------------------------------------------------------------------


def test_tls_keeps_out_who_trusts_another_authority_and_who_speaks_none(tmp_path):
    own, other = certificates(tmp_path / "own"), certificates(tmp_path / "other")
    lock = Lock(TOKEN, own / "tls.crt", own / "tls.key")
    with serve_environment(lambda: PocketEnvironment(8), lock=lock) as simulator:
        trusted = Connection(Address(simulator.target, ca=own / "ca.crt", token=TOKEN))
        assert Scenes(trusted).capabilities().horizon == 8
        for address in (
            Address(simulator.target, ca=other / "ca.crt", token=TOKEN),
            Address(simulator.target, token=TOKEN),
        ):
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                Scenes(Connection(address), patience_s=0.2).capabilities()
        with pytest.raises(ClientError, match="UNAUTHENTICATED"):
            wrong = Address(simulator.target, ca=own / "ca.crt", token="another-token-0123456789")
            Scenes(Connection(wrong)).capabilities()


def test_mutual_tls_keeps_out_who_has_no_certificate_or_an_expired_one(tmp_path):
    own, expired = certificates(tmp_path / "own"), tmp_path / "expired"
    certificates(expired)
    for name in ("ca.crt", "ca.key"):
        (expired / name).write_bytes((own / name).read_bytes())
    certificates(expired, days="-1")
    lock = Lock(TOKEN, own / "tls.crt", own / "tls.key", client_ca=own / "ca.crt")
    with serve_environment(lambda: PocketEnvironment(8), lock=lock) as simulator:
        address = Address(simulator.target, own / "ca.crt", own / "tls.crt", own / "tls.key", TOKEN)
        assert Scenes(Connection(address)).capabilities().horizon == 8
        without = replace(address, certificate=None, key=None)
        late = replace(address, certificate=expired / "tls.crt", key=expired / "tls.key")
        for each in (without, late):
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                Scenes(Connection(each), patience_s=0.2).capabilities()


# -- what is sent --------------------------------------------------------------------------------------------------------


def test_a_message_that_is_too_large_is_refused_before_it_is_read(served):
    with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED.*larger than max"):
        robot = ServedPolicy(served.connection(), patience_s=0.1)
        robot.act(replace(seen(), images={"main": np.zeros((1024, 1024, 3), np.uint8)}))


def test_half_a_message_is_waited_for_only_shortly_and_others_are_served(served):
    before = served.refused("slow_message")
    connection = served.connection()

    def never():
        time.sleep(30)
        yield b""

    call = connection.channel.stream_stream("/wmpo.v1.Policy/Hello")
    slow = [call(never(), timeout=20, metadata=connection._metadata) for _ in range(20)]
    began = time.monotonic()
    assert ServedPolicy(served.connection()).act(seen()).actions.shape == (4, 3)
    for each in slow:
        with pytest.raises(grpc.RpcError, match="no message within"):
            next(each)
    assert served.refused("slow_message") == before + 20 and time.monotonic() - began < 20


def test_connections_that_say_nothing_keep_nobody_out(served):
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    try:
        for each in idle[:50]:
            each.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00")
        assert ServedPolicy(served.connection()).act(seen()).actions.shape == (4, 3)
    finally:
        for each in idle:
            each.close()


def test_a_million_hellos_leave_a_bounded_table_and_the_robots_that_act():
    table = SessionTable(most=16)
    acting = [table.open(f"r{n}") for n in range(8)]
    for name in acting:
        table.note_act(name)
    for _ in range(1_000_000):
        table.open("hello")
    assert len(table) == 16 and all(table.find(name).robot == f"r{n}" for n, name in enumerate(acting))
    for name in [table.open("more") for _ in range(8)]:
        table.note_act(name)
    with pytest.raises(Refusal, match="16 robots act already"):
        table.open("one more")
    table.idle_s = 0.0
    table.open("another")
    with pytest.raises(Refusal, match="no such session"):
        table.find(acting[0])


def test_messages_that_nobody_sends_are_each_answered_with_a_status_code(served):
    connection = served.connection()
    stub = rpc.PolicyStub(connection.channel)
    paths = seeds_of_messages(connection.call(stub.Hello, pb.HelloRequest(), 5).session)
    counts = send_all(connection, {path: each for path, each in paths.items() if "Environments" not in path}, 500)
    assert sum(counts.values()) == 500 and crashes(counts) == 0
    assert counts["INVALID_ARGUMENT"] > 100 and counts["OK"] > 10
    assert ServedPolicy(connection).act(seen()).actions.shape == (4, 3)


def test_a_simulator_answers_messages_that_nobody_sends_with_a_status_code():
    with serve_environment(lambda: PocketEnvironment(8)) as simulator:
        paths = {path: each for path, each in seeds_of_messages("").items() if "Environments" in path}
        counts = send_all(simulator.connection(), paths, 500)
        assert sum(counts.values()) == 500 and crashes(counts) == 0 and counts["INVALID_ARGUMENT"] > 50
        assert Scenes(simulator.connection()).capabilities().horizon == 8


def png_of(height: int, width: int) -> bytes:
    return encode_image("c", np.zeros((height, width, 3), np.uint8), pb.PNG).data


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pb.Image(camera="c", height=4, width=4, data=bytes(47)), "has 48 bytes, this one 47"),
        (pb.Image(camera="c", height=0, width=4), "0 x 4 pixels"),
        (pb.Image(camera="c", height=2**31, width=2**31), "pixels"),
        (pb.Image(camera="c", height=4096, width=4096), "altogether are the most"),
        (pb.Image(camera="", height=1, width=1, data=bytes(3)), "0 characters"),
        (pb.Image(camera="c", format=9, height=1, width=1), "image format 9"),
        (pb.Image(camera="c", format=pb.PNG, height=4, width=4, data=b"nonsense"), "no PNG image"),
        (pb.Image(camera="c", format=pb.PNG, height=4, width=4, data=png_of(2000, 2000)), "4 x 4 RGB was announced"),
        (pb.Image(camera="c", format=pb.JPEG, height=4, width=4, data=png_of(4, 4)), "no JPEG image"),
        (pb.Image(camera="c", format=pb.PNG, height=4, width=4, data=png_of(4, 4)[:-30]), "no PNG image"),
    ],
)
def test_an_image_that_is_not_what_it_says_is_refused(image, message):
    with pytest.raises(Refusal, match=message):
        decode_image(image)


def test_an_image_comes_back_as_it_was_sent():
    frame = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    assert np.array_equal(decode_image(encode_image("c", frame)), frame)
    assert np.array_equal(decode_image(encode_image("c", frame, pb.PNG)), frame)
    smooth = np.full((16, 16, 3), 90, np.uint8)
    assert np.abs(decode_image(encode_image("c", smooth, pb.JPEG)).astype(int) - 90).max() < 4
    assert to_array(frame).shape == [5, 7, 3]


# -- the token -----------------------------------------------------------------------------------------------------------


def test_a_token_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(token_file.TOKEN)
    monkeypatch.setenv(token_file.TOKEN_PATH, str(tmp_path / "deep" / "token"))
    with pytest.raises(ClientError, match="copy the server's token there"):
        token_file.read_token()
    made = token_file.require_token()
    assert len(made) == 64 and token_file.require_token() == made == token_file.read_token()
    assert (tmp_path / "deep" / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "deep" / "token").write_text("short")
    with pytest.raises(ClientError, match="a token of 5 characters"):
        token_file.read_token()
