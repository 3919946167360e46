"""The client as a robot installs it: in an environment of its own, with an old Python and an old numpy where there are any."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.robots.small_server import small_server
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

ROOT = Path(__file__).parents[2]
PYTHON, NUMPY = "python3.9", "numpy==1.26.4"
NOT_THE_CLIENTS = ("pip", "setuptools", "_distutils_hack", "pkg_resources", "wheel")
IMPORT = """
import json, sys, time
began = time.perf_counter()
import wmpo_client.drive, wmpo_client.episode_spool, wmpo_client.served_policy, wmpo_client.simulated_robot
import wmpo_client.lerobot_bridge, wmpo_client.operator_keys, wmpo_client.serving.environment_server
seconds = time.perf_counter() - began
import numpy
print(json.dumps([seconds, "torch" in sys.modules, numpy.__version__, sys.version.split()[0]]))
"""
ACT = """
import sys, numpy as np
from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection
policy = ServedPolicy(Connection(Address(sys.argv[1])))
print(policy.act(Seen({"main": np.zeros((16, 16, 3), np.uint8)}, sys.argv[2])).actions.shape)
"""


def client_install(folder: Path, python: str) -> dict[str, dict[str, Any]]:
    """Its size with everything that it needs, and whether it imports and acts there."""
    command = shutil.which(python)
    if command is None or subprocess.run([command, "--version"], capture_output=True, check=False).returncode:
        raise SystemExit(f"there is no {python}: name another with --client-python")
    place, source = folder / "venv", folder / "wmpo_client"
    shutil.copytree(ROOT / "wmpo_client", source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([command, "-m", "venv", str(place)], check=True)
    own = place / "bin" / "python"
    subprocess.run([own, "-m", "pip", "install", "-q", "--no-compile", str(source), NUMPY], check=True)
    packages = next((place / "lib").glob("python*/site-packages"))
    sizes = {each.name: size_of(each) for each in packages.iterdir() if not each.name.startswith(NOT_THE_CLIENTS)}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = [_asked(own, environment, IMPORT) for _ in range(7)]
    seconds, has_torch, numpy, version = [each[0] for each in found], *found[0][1:]
    with small_server(folder) as target:
        done = subprocess.run(
            [own, "-c", ACT, target, INSTRUCTIONS[0]], capture_output=True, text=True, env=environment, check=True
        )
    assert done.stdout.strip() == "(4, 3)" and not has_torch, done.stdout
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest)
    where = f"Python {version}, numpy {numpy}"
    return {
        "client_installed_mb": {
            "value": sum(sizes.values()) / 1e6,
            "unit": f"MB of files in site-packages with all dependencies, without pip and compiled files, {where}: {parts}; "
            "it imports and acts there, and torch is not in it",
        },
        "client_import_old_python_s": {"value": statistics.median(seconds[1:]), "unit": f"s, median of 6, {where}"},
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())


def _asked(python: Path, environment: dict[str, str], code: str) -> Any:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)
