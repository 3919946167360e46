"""What is lost, doubled, open or broken: it should all be nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robots.doors import open_doors
from benchmarks.robots.faulty_network import Faults, FaultyNetwork
from benchmarks.robots.fuzzed_messages import crashes, seeds_of_messages, send_all
from benchmarks.robots.small_server import small_server
from wmpo_client.episode_recorder import EpisodeRecorder
from wmpo_client.episode_spool import Spool, Uploader
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_client.token_file import read_token
from wmpo_ray.data.data_set import load_data
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
IMPORT = """
import time
began, cpu = time.perf_counter(), time.process_time()
import wmpo_client.drive, wmpo_client.episode_spool, wmpo_client.served_policy, wmpo_client.simulated_robot
print(time.perf_counter() - began, time.process_time() - cpu)
"""


def uploads(folder: Path, num: int) -> dict[str, dict[str, Any]]:
    """Episodes lost and doubled, of those that a robot recorded."""
    spool = Spool(folder / "spool")
    for value in range(num):
        _record(spool, value)
    ids = {path.stem for path in spool.waiting()}
    with small_server(folder) as target:
        network = FaultyNetwork(target, 0, Faults(delay_s=0.002))
        sender = Uploader(spool, Connection(Address(network.target)), pause_s=0.02, piece_bytes=700)
        sender.start()
        sender.wait(1800)
        sender.stop()
        network.close()
    found = load_data(folder / "robot" / "store" / "collect")
    marks = Counter(int(action) for action in np.round(found.actions[:, 0, 0].astype(np.float64) * 1e6))
    kept = {path.stem for path in (folder / "robot" / "received").iterdir()}
    faults = ", ".join(f"{count} {name}" for name, count in sorted(network.counts.items()))
    unit = f"of {num} episodes; calls on the way: {faults}"
    lost = len(ids - kept) + sum(1 for value in range(num) if not marks[value])
    twice = sum(count - 1 for count in marks.values() if count > 1) + len(kept - ids)
    return {"uploads_lost": {"value": lost, "unit": unit}, "uploads_twice": {"value": twice, "unit": unit}}


def _record(spool: Spool, value: int) -> None:
    """An episode whose actions say which one it is."""
    recorder = EpisodeRecorder(spool)
    seen = Seen({"main": np.full((16, 16, 3), value % 256, np.uint8)}, INSTRUCTIONS[0])
    recorder.begin(seen)
    for _ in range(4):
        recorder.step(np.full(3, value / 1e6, np.float32), seen)
    recorder.end(value % 2 == 0)


def doors(folder: Path) -> dict[str, dict[str, Any]]:
    with small_server(folder) as target:
        found, tried = open_doors(target, read_token())
    return {"doors_open_without_token": {"value": len(found), "unit": f"of {tried} calls without the token"}}


def fuzz(folder: Path, num: int) -> dict[str, dict[str, Any]]:
    """Half of the messages to a policy server, half to a simulator."""
    command = [sys.executable, "-m", "wmpo_ray", "simulator", "smoke", "--listen", "127.0.0.1:0"]
    with small_server(folder) as target, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as simulator:
        assert simulator.stdout is not None
        policy = Connection(Address(target))
        session = policy.call(rpc.PolicyStub(policy.channel).Hello, pb.HelloRequest(), 60).session
        paths = seeds_of_messages(session)
        own = {path: each for path, each in paths.items() if "Environments" not in path}
        counts = send_all(policy, own, num // 2)
        others = {path: each for path, each in paths.items() if "Environments" in path}
        scenes = Connection(Address(simulator.stdout.readline().split()[-1]))
        counts += send_all(scenes, others, num - num // 2)
        alive = ServedPolicy(policy).facts.chunk_length == 4 and simulator.poll() is None
        simulator.terminate()
    codes = ", ".join(f"{count} {code}" for code, count in counts.most_common())
    value = crashes(counts) + (not alive)
    return {"fuzzed_crashes": {"value": value, "unit": f"of {sum(counts.values())} messages: {codes}"}}


def client_import() -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-c", IMPORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(9):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append([float(each) for each in done.stdout.split()])
    wall, cpu = (statistics.median(each) for each in zip(*found, strict=True))
    return {
        "client_import_s": {"value": wall, "unit": f"s, median of {len(found)}; {cpu:.2f} s of them on the processor"}
    }
