"""A policy server of a small policy in a process of its own, with settings that need no run.

python -m benchmarks.robots.small_server FOLDER SIDE WIDTH [LISTEN]      prints its address; ends with its standard input
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cluster.serving.policy_server import PolicyServer, ServingOptions
from wmpo_client.serving.locked_server import Lock
from wmpo_client.token_file import read_token
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.remote.episode_service import add_episodes
from wmpo_ray.remote.robot_episodes import EpisodeFolder
from wmpo_ray.remote.served_weights import Weights

PATCH = 32  # pixels, of frames of 256


def config_of(side: int, width: int) -> Config:
    """Settings for a robot that no simulator here is asked for: nothing connects to the address."""
    patch = PATCH if side >= 256 else 8
    return load_config(
        "smoke",
        (
            "environment.kind=remote",
            "environment.address=127.0.0.1:1",
            f"environment.frame_size={side}",
            f"environment.instructions=[{', '.join(repr(text) for text in INSTRUCTIONS)}]",
            f"policy.network.width={width}",
            "policy.network.num_layers=2",
            f"policy.network.patch_size={patch}",
        ),
    )


def policy_of(side: int, width: int) -> TinyPolicy:
    torch.manual_seed(0)
    patch = PATCH if side >= 256 else 8
    return TinyPolicy(
        TinyPolicyHFConfig(
            width=width, num_layers=2, frame_size=side, patch_size=patch, vocabulary=vocabulary_of(INSTRUCTIONS)
        )
    ).eval()


async def serve(folder: Path, side: int, width: int, listen: str = "127.0.0.1:0") -> None:
    place = folder / "policy"
    if not place.exists():
        policy_of(side, width).save_pretrained(place)
    options = ServingOptions(listen, Lock(read_token()), 1.0)
    server = PolicyServer(config_of(side, width), lambda: Weights(place, 0), options)
    await server.start(add_episodes(EpisodeFolder(folder / "robot"), server.metrics))
    print(f"127.0.0.1:{server.port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


def server_command(folder: Path, side: int = 16, width: int = 32, listen: str = "127.0.0.1:0") -> list[str]:
    return [sys.executable, "-m", "benchmarks.robots.small_server", str(folder), str(side), str(width), listen]


@contextmanager
def small_server(folder: Path, side: int = 16, width: int = 32) -> Iterator[str]:
    """The address of a server in another process."""
    with server_process(folder, side, width) as (target, _):
        yield target


def processor_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server_process(folder: Path, side: int, width: int) -> Iterator[tuple[str, int]]:
    """(address, number of the process) of a server."""
    command = server_command(folder, side, width)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
