"""LeRobot's own robot client against a policy server of ours, through the bridge that runs beside it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robots.small_server import small_server
from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "lerobot_robot.py"
ROBOT, SIDE, NUM = "lerobot", 16, 40


def lerobot(folder: Path, python: Path) -> dict[str, dict[str, Any]]:
    """Actions that its robot was sent and the policy had not decided, or decided for another time."""
    with small_server(folder) as target:
        wanted = expected(target)
        bridge = [str(python), "-m", "wmpo_client", "lerobot", "--policy", target, "--robot", ROBOT]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**alone, "PYTHONPATH": client_alone(folder)}
        with subprocess.Popen(
            [*bridge, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        ) as process:
            assert process.stdout is not None
            try:
                address = next(line.split()[-1] for line in process.stdout if "is answered on" in line)
                command = [str(python), str(SCRIPT), address, INSTRUCTIONS[0], str(SIDE), str(NUM)]
                with tempfile.TemporaryDirectory() as place:  # it writes its log where it stands
                    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place, env=alone)
            finally:
                process.terminate()
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
    answer = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"version"')))
    got = np.array(answer["actions"], np.float32)
    wrong = NUM - sum(1 for one, other in zip(got, wanted, strict=False) if np.array_equal(one, other))
    unit = f"of {NUM} actions that the robot client of lerobot {answer['version']} gave to its robot"
    return {"lerobot_actions_wrong": {"value": wrong, "unit": unit}}


def expected(target: str) -> np.ndarray:
    """[NUM, D]: each chunk begins at the step of the last action before it, which lerobot's client does not repeat."""
    policy = ServedPolicy(Connection(Address(target)), ROBOT)
    policy.begin_episode(1)
    seen = Seen({"front": np.full((SIDE, SIDE, 3), 7, np.uint8)}, INSTRUCTIONS[0], np.full(3, 0.5, np.float32))
    chunks = [policy.act(seen).actions for _ in range(NUM)]
    return np.concatenate([chunks[0], *(chunk[1:] for chunk in chunks[1:])])[:NUM]


def client_alone(folder: Path) -> str:
    """A folder with our client: lerobot's Python must not find this program's other packages."""
    place = folder / "client"
    place.mkdir()
    (place / "wmpo_client").symlink_to(ROOT / "wmpo_client")
    return str(place)
