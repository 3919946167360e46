"""The walk of docs/robot.md, as a reader types it, with other ports."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cluster.host.ports import free_port
from tests.support.documents import ROOT, commands_of
from tests.support.remote_servers import TOKEN
from tests.support.served_policies import ServedTiny
from wmpo_ray.data.data_set import load_data

PAGE = ROOT / "docs" / "robot.md"
START, *SERVERS = commands_of(PAGE, "tests/remote/test_robot_walk.py")[:3]
*DRIVES, LABEL, AGAIN = commands_of(PAGE, "tests/remote/test_robot_walk.py")[3:]
OWN = commands_of(PAGE, "tests/remote/test_robot_walk.py::test_a_robot_of_your_own")


class Walk:
    """A folder to type commands in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports = {"7410": str(free_port()), "7411": str(free_port())}
        threads = {"OMP_NUM_THREADS": "1", "WMPO_TOKEN": TOKEN}
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **threads}

    def words(self, command: str) -> list[str]:
        for shown, port in self.ports.items():
            command = command.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{port}")
        program, *rest = command.split()
        return [sys.executable, *(["-m", "wmpo_ray"] if program == "wmpo" else []), *rest]

    def type(self, command: str, keys: str = "") -> str:
        done = subprocess.run(
            self.words(command),
            cwd=self.folder,
            env=self.environment,
            input=keys,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, command: str, until: str) -> Iterator[list[str]]:
        """A server; its lines as they come."""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        said: list[str] = []
        with subprocess.Popen(self.words(command), cwd=self.folder, env=self.environment, **pipe) as process:
            try:
                for line in process.stdout:
                    said.append(line)
                    if until in line:
                        break
                threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
                yield said
            finally:
                process.terminate()
                assert process.wait(60) == 0


@pytest.mark.slow
def test_the_walk(tmp_path):
    """From a policy to a robot, back, and to the improved policy, which the same server takes."""
    walk = Walk(tmp_path)
    walk.type(START)
    simulator, server = SERVERS
    with walk.running(simulator, "listens on"), walk.running(server, "listens on") as said:
        shown = [walk.type(command) for command in DRIVES]
        assert [text.splitlines()[-1].partition("; ")[2] for text in shown] == [
            f"{num} episodes sent, 0 wait, 0 refused" for num in (30, 16, 2)
        ]
        assert "2 labelled, 0 without a verdict" in walk.type(LABEL, "y\nn\n")
        store = tmp_path / "runs" / "robot" / "robot" / "store"
        collected, gate = load_data(store / "collect"), load_data(store / "gate")
        assert (len(collected), len(gate)) == (32, 16) and (gate.seeds >= 10**9).all()
        assert not np.isin(collected.seeds, gate.seeds).any()
        before = (tmp_path / "runs/robot/models/policy/model.safetensors").read_bytes()
        walk.type(AGAIN)
        assert (tmp_path / "runs/robot/models/policy/model.safetensors").read_bytes() != before
        later = walk.type(DRIVES[0].replace("--episodes 30", "--episodes 1 --first-seed 900"))
        assert "policy [2]" in later
    assert any("acting with update 2" in line for line in said), said


def test_a_robot_of_your_own(tmp_path, monkeypatch):
    code = next(block for block in PAGE.read_text().split("```python\n")[1:]).split("```")[0]
    assert OWN[0] == code.split("\n")[0]
    monkeypatch.chdir(tmp_path)
    with ServedTiny(tmp_path, tmp_path / "robot") as server:
        names: dict = {}
        exec(code.replace("127.0.0.1:7410", server.target), names)  # noqa: S102  the page's own code
        assert names["made"].num_steps == 20 and names["made"].versions == {7}
        waited = threading.Event()
        while server.episodes.ids() != [names["made"].id] and not waited.wait(0.05):
            pass
        assert server.episodes.unlabelled() == [names["made"].id], "nobody said how it ended"
