"""A server that is killed, and one whose replicas load new weights: nothing is lost, nothing comes twice, robots go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from actors.serving_actor import Acted
from benchmarks.robots.small_server import config_of, policy_of, server_command
from cluster.serving import policy_server
from tests.support.documents import ROOT
from tests.support.remote_servers import TOKEN
from tests.support.robot_recordings import record
from tests.support.served_policies import ServedTiny, seen
from wmpo_client.episode_spool import Spool, Uploader
from wmpo_client.served_policy import ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.data.data_set import load_data
from wmpo_ray.remote.robot_episodes import EpisodeFolder
from wmpo_ray.remote.served_weights import Weights

# -- killed --------------------------------------------------------------------------------------------------------------


def begin(folder: Path, listen: str = "127.0.0.1:0") -> tuple[subprocess.Popen, str]:
    """A server in a process of its own, once it listens."""
    environment = {**os.environ, "WMPO_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(server_command(folder, listen=listen), cwd=ROOT, env=environment, **pipes)
    return process, process.stdout.readline().strip()


def decided(chunk: int) -> np.ndarray:
    """By the server's policy, for the first episode of the robot "r"."""
    seed = seed_for(config_of(16, 32).seed, "serve", "r", 0, chunk)
    view = Observation.of(seen(chunk).images["main"][None], [seen(chunk).instruction])
    with torch.no_grad():
        return policy_of(16, 32).act(view, 1.0, [seed]).actions[0].numpy()


def test_a_server_that_is_killed_in_the_middle_of_an_upload_and_of_an_act_loses_nothing(tmp_path):
    process, target = begin(tmp_path)
    try:
        address = Address(target, token=TOKEN)
        robot = ServedPolicy(Connection(address), "r", patience_s=120.0)
        assert np.allclose(robot.act(seen(1)).actions, decided(1), atol=1e-5)
        spool = Spool(tmp_path / "spool")
        ids = {record(spool, value) for value in range(3)}
        sender = Uploader(spool, Connection(address), pause_s=0.05, most_pause_s=0.2, piece_bytes=300)
        sender.start()
        incoming = tmp_path / "robot" / "incoming"
        while not any(path.stat().st_size for path in incoming.glob("*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)  # so that both are on their way when it is killed
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(robot.act, seen(1))
            time.sleep(0.3)
            assert not answer.done() and spool.waiting()
            process.kill()
            process.wait(20)
            process, _ = begin(tmp_path, target)
            assert np.allclose(answer.result(120).actions, decided(1), atol=1e-5), "asked again in a new session"
        assert sender.wait(60)
        sender.stop()
        folder = EpisodeFolder(tmp_path / "robot")
        assert set(folder.ids()) == ids and sender.num_refused == 0
        assert len(load_data(folder.store / "collect")) == 3
    finally:
        process.kill()
        process.wait(20)


# -- several replicas ----------------------------------------------------------------------------------------------------


class Replica:
    """A copy that answers with the number of its weights, and whose loading takes until it is let go on."""

    made: list[Replica] = []  # noqa: RUF012  of the test that is running

    def __init__(self, config, weights, temperature):
        self.number, self.go_on, self.is_loading = weights.num_updates, threading.Event(), False
        Replica.made.append(self)

    async def act(self, observation, seeds) -> Acted:
        assert not self.is_loading, "nothing is computed beside loading"
        actions = np.full((len(seeds), 4, 3), self.number / 100, np.float32)
        return Acted(actions, await self.version(), 0.0)

    async def load(self, weights) -> WeightVersion:
        self.is_loading = True
        await asyncio.to_thread(self.go_on.wait, 20)
        self.number, self.is_loading = weights.num_updates, False
        return await self.version()

    async def version(self) -> WeightVersion:
        return WeightVersion(self.number, f"d{self.number}")


def test_robots_are_answered_while_one_of_two_replicas_loads_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_server, "RayReplica", Replica)
    Replica.made.clear()
    with ServedTiny(tmp_path, num_replicas=2) as server:
        robot = ServedPolicy(server.connection(), "r", patience_s=5.0)
        assert robot.act(seen(0)).num_updates == 7
        (tmp_path / "other").mkdir()
        server.weights = Weights(tmp_path / "other", 8)
        loading = asyncio.run_coroutine_threadsafe(server.inside.look_for_weights(lambda text: None), server._loop)
        first, second = Replica.made
        for replica, left in ((first, {7}), (second, {8})):
            while not replica.is_loading:
                time.sleep(0.005)
            assert {robot.act(seen(n)).num_updates for n in range(20)} == left
            replica.go_on.set()
        assert loading.result(20)
        assert {robot.act(seen(n)).num_updates for n in range(20)} == {8}
