"""What a robot is answered: the policy's own decisions, by a version that is named, once for each question."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
import torch

from tests.support.implementations import make_tiny
from tests.support.served_policies import CONFIG, ServedTiny, expected, seen
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError
from wmpo_client.served_policy import ServedPolicy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.remote.served_weights import Weights


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with ServedTiny(tmp_path_factory.mktemp("served")) as server:
        yield server


def policy(server, robot="r", **options) -> ServedPolicy:
    return ServedPolicy(server.connection(), robot, patience_s=5.0, **options)


@pytest.mark.parametrize("image_format", [pb.RAW, pb.PNG])
def test_a_robot_is_answered_what_the_policy_decides(served, image_format):
    robot = policy(served, f"r{image_format}", image_format=image_format)
    robot.begin_episode(5)
    for chunk in (1, 2):
        answer = robot.act(seen(chunk))
        assert np.array_equal(answer.actions, expected(seen(chunk), f"r{image_format}", 5, chunk))
        assert answer.num_updates == 7 and len(answer.digest) == 16


def test_a_jpeg_is_decoded(served):
    assert policy(served, image_format=pb.JPEG).act(seen(1)).actions.shape == (4, 3)


def test_hello_says_what_is_served(served):
    facts = policy(served).facts
    assert (facts.chunk_length, facts.action_dims, facts.frame_height, facts.frame_width) == (4, 3, 16, 16)
    assert tuple(facts.instructions) == INSTRUCTIONS and facts.policy.num_updates == 7


def test_the_same_question_again_has_the_same_answer_and_is_decided_once(served):
    connection = served.connection()
    stub = rpc.PolicyStub(connection.channel)
    session = connection.call(stub.Hello, pb.HelloRequest(), 5).session
    question = pb.ActRequest(session=session, sequence=1, observation=seen(1).message())
    before = served.metrics.value("wmpo_serve_act_seconds_count")
    answers = [connection.call(stub.Act, question, 5) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert served.metrics.value("wmpo_serve_act_seconds_count") == before + 1
    connection.call(stub.Act, pb.ActRequest(session=session, sequence=2, observation=seen(2).message()), 5)
    with pytest.raises(grpc.RpcError, match="question 1 comes after 2"):
        connection.call(stub.Act, question, 5)


def test_a_stream_answers_as_single_calls_do(served):
    connection = served.connection()
    stub = rpc.PolicyStub(connection.channel)
    session = connection.call(stub.Hello, pb.HelloRequest(robot="s"), 5).session
    questions = [pb.ActRequest(session=session, sequence=n, observation=seen(n).message()) for n in (1, 2, 3)]
    answers = list(stub.ActStream(iter(questions), timeout=10, metadata=connection._metadata))
    assert [answer.sequence for answer in answers] == [1, 2, 3]
    for n, answer in enumerate(answers, 1):
        values = np.frombuffer(answer.actions.values, "<f4").reshape(4, 3)
        assert np.array_equal(values, expected(seen(n), "s", 0, n))


def test_many_robots_are_decided_on_together_and_as_if_alone(tmp_path):
    with ServedTiny(tmp_path, max_wait_s=0.2) as server:
        robots = [policy(server, f"r{n}") for n in range(12)]
        with ThreadPoolExecutor(12) as threads:
            for chunk in (1, 2):
                answers = list(threads.map(lambda n: robots[n].act(seen(n)), range(12)))
                for n, answer in enumerate(answers):
                    assert np.allclose(answer.actions, expected(seen(n), f"r{n}", 0, chunk), atol=1 / 64)
        assert max(answer.batch_size for answer in answers) >= 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "fold the towel"}, "none that the policy knows"),
        ({"images": {"main": np.zeros((32, 32, 3), np.uint8)}}, "shows 32 x 32 pixels; the policy sees 16 x 16"),
        ({"images": {}}, "0 images"),
        ({"images": {f"c{n}": np.zeros((16, 16, 3), np.uint8) for n in range(9)}}, "9 images"),
        ({"state": np.array([np.nan], np.float32)}, "not finite"),
        ({"state": np.zeros(5000, np.float32)}, "5000 numbers"),
    ],
)
def test_what_the_policy_cannot_be_asked_is_refused(served, change, message):
    before = served.refused("invalid")
    with pytest.raises(ClientError, match=message):
        policy(served).act(replace(seen(), **change))
    assert served.refused("invalid") == before + 1


def test_new_weights_are_taken_between_chunks_and_named(tmp_path):
    with ServedTiny(tmp_path) as server:
        robot = policy(server)
        first = robot.act(seen(1))
        torch.manual_seed(1)
        other = make_tiny()
        torch.nn.init.normal_(other.heads, std=1.0)
        other.save_pretrained(tmp_path / "other")
        server.weights = Weights(tmp_path / "other", 8)
        said: list[str] = []
        assert server.run(server.inside.look_for_weights(said.append))
        assert not server.run(server.inside.look_for_weights(said.append)), "the same weights are not loaded again"
        second = robot.act(seen(1))
        assert (first.num_updates, second.num_updates) == (7, 8) and first.digest != second.digest
        assert said == [f"acting with update 8 ({second.digest})"]
        (tmp_path / "damaged").mkdir()
        server.weights = Weights(tmp_path / "damaged", 9)
        with pytest.raises(Exception, match="damaged"):
            server.run(server.inside.look_for_weights(said.append))
        assert robot.act(seen(2)).num_updates == 8


def test_no_chunk_is_of_two_versions(tmp_path):
    """Weights change all the time while robots act: every answer is what the version that it names decides."""
    with ServedTiny(tmp_path) as server:
        first, other = make_tiny(), make_tiny()
        torch.nn.init.normal_(other.heads, std=1.0)
        other.save_pretrained(tmp_path / "other")
        ended = threading.Event()

        def swap() -> None:
            turn = 0
            while not ended.is_set():
                turn += 1
                server.weights = Weights(tmp_path / ("other" if turn % 2 else "policy"), 100 + turn % 2)
                server.run(server.inside.look_for_weights(lambda text: None))

        thread = threading.Thread(target=swap)
        thread.start()
        robot, found = policy(server, "r"), set()
        try:
            for chunk in range(1, 100):
                answer = robot.act(seen(0))
                seed = seed_for(CONFIG.seed, "serve", "r", 0, chunk)
                acting = other if answer.num_updates == 101 else first
                with torch.no_grad():
                    view = Observation.of(seen(0).images["main"][None], [seen(0).instruction])
                    assert np.array_equal(acting.act(view, 1.0, [seed]).actions[0].numpy(), answer.actions)
                found.add(answer.num_updates)
        finally:
            ended.set()
            thread.join()
        assert found >= {100, 101}


def test_a_server_that_begins_anew_is_greeted_anew(tmp_path):
    server = ServedTiny(tmp_path)
    robot = policy(server)
    robot.begin_episode(3)
    robot.act(seen(1))
    listen = server.target
    server.stop()
    with ServedTiny(tmp_path, listen=listen):
        assert np.array_equal(robot.act(seen(2)).actions, expected(seen(2), "r", 3, 1))


def test_who_cannot_be_served_in_time_hears_so(tmp_path):
    with ServedTiny(tmp_path) as server:
        connection = server.connection()
        stub = rpc.PolicyStub(connection.channel)
        session = connection.call(stub.Hello, pb.HelloRequest(), 5).session
        block = threading.Event()
        server.inside.replicas[0]._thread.submit(block.wait)  # the replica is busy
        try:
            with pytest.raises(grpc.RpcError) as refused:
                question = pb.ActRequest(session=session, sequence=1, observation=seen().message())
                connection.call(stub.Act, question, 0.3)
            assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            block.set()
