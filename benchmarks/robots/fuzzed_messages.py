"""Messages that no client of ours sends, to every method: each must get a status code or an answer."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from wmpo_client.arrays import to_array
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.server_connection import Connection

PATIENCE_S = 60.0  # for a connection that was lost
CRASHES = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


def seeds_of_messages(session: str) -> dict[str, list[Any]]:
    """Valid messages of every method, by the method's path."""
    image = pb.Image(camera="main", height=16, width=16, data=bytes(768))
    seen = pb.Observation(images=[image], instruction="push", state=[0.5])
    array = to_array(np.zeros((1, 2, 3), np.float32))
    png = pb.Image(camera="wrist", format=pb.PNG, height=4, width=4, data=b"\x89PNG\r\n\x1a\n" + bytes(64))
    expert = pb.Expert(random='{"bit_generator": "PCG64", "state": {"state": 1, "inc": 3}}', noise=0.5)
    scene = pb.SceneRequest(scene="fuzz", generation=1)
    return {
        "/wmpo.v1.Policy/Hello": [pb.HelloRequest(robot="fuzz", protocols=[1, 2])],
        "/wmpo.v1.Policy/Act": [
            pb.ActRequest(session=session, sequence=1, observation=seen),
            pb.ActRequest(session=session, sequence=2, observation=pb.Observation(images=[image, png])),
        ],
        "/wmpo.v1.Policy/Reset": [pb.ResetRequest(session=session, episode=3)],
        "/wmpo.v1.Episodes/State": [pb.UploadName(id="fuzz-0001", sha256="0" * 64)],
        "/wmpo.v1.Episodes/Put": [
            pb.UploadPiece(id="fuzz-0001", sha256="0" * 64, total_bytes=64, data=b"WMPOEP1\n" + bytes(56))
        ],
        "/wmpo.v1.Environments/Capabilities": [pb.CapabilitiesRequest()],
        "/wmpo.v1.Environments/Reset": [
            pb.SceneResetRequest(scene="fuzz", generation=1, starts=[pb.StartState(seed=1, has_seed=True)])
        ],
        "/wmpo.v1.Environments/Step": [
            pb.SceneStepRequest(scene="fuzz", generation=1, actions=array, frames=pb.ALL),
            pb.SceneStepRequest(scene="fuzz", generation=1, actions=array, expert=expert),
        ],
        "/wmpo.v1.Environments/Choose": [pb.SceneStepRequest(scene="fuzz", generation=1, expert=expert)],
        "/wmpo.v1.Environments/Observe": [scene],
        "/wmpo.v1.Environments/Save": [scene],
        "/wmpo.v1.Environments/Read": _readings(scene, array),
    }


def _readings(scene: Any, actions: Any) -> list[Any]:
    videos, lengths = to_array(np.zeros((1, 2, 16, 16, 3), np.uint8)), to_array(np.ones(1, np.int64))
    more = {"actions": actions, "instructions": ["push"], "lengths": lengths}
    return [
        pb.ReadRequest(scene=scene, ability="events", videos=videos),
        pb.ReadRequest(scene=scene, ability="failures", videos=videos, **more),
    ]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, left out, repeated, or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(changed) + 1), rng.randrange(5)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.choice((1, 2, 8, len(changed)))]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(64)]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        else:  # a length or a number of another size
            changed[at : at + 1] = rng.choice((b"\xff\xff\xff\xff\x0f", b"\x80\x80\x01", b"\x00", b"\x7f"))
    return bytes(changed)


def messages(paths: dict[str, list[Any]], num: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, bytes), all paths in turn."""
    rng = random.Random(seed)
    names = sorted(paths)
    for index in range(num):
        path = names[index % len(names)]
        data = rng.choice(paths[path]).SerializeToString()
        yield path, rng.randbytes(rng.randrange(200)) if rng.random() < 0.1 else mutated(data, rng)


def send_all(connection: Connection, paths: dict[str, list[Any]], num: int, seed: int = 0) -> Counter[str]:
    """How often each status code came back, "OK" among them."""
    counts: Counter[str] = Counter()
    for path, data in messages(paths, num, seed):
        code, details = _answer(connection, path, data)
        counts[code] += 1
        if code in CRASHES and counts[code] <= 3:
            print(f"{path} {data[:40].hex()}: {code} {details}", flush=True)
    return counts


def _answer(connection: Connection, path: str, data: bytes) -> tuple[str, str]:
    """(status code, details). A busy machine may lose a connection; a server that has crashed does not come back."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.call(connection.channel.unary_unary(path), data, 20)
            return "OK", ""
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                return error.code().name, error.details()
            time.sleep(0.2)


def crashes(counts: Counter[str]) -> int:
    """Answers that say that something was not foreseen, or that nobody answers."""
    return sum(count for code, count in counts.items() if code in CRASHES)
