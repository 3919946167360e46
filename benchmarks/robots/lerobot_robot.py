"""Run by lerobot's own Python: its RobotClient with a robot that remembers what it was sent.

python lerobot_robot.py SERVER_ADDRESS TASK SIDE ACTIONS      the actions are the last line, as JSON
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot import __version__
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

FPS = 50
PATIENCE_S = 60.0
MOTORS = {f"motor_{index}.pos": float for index in range(3)}


@RobotConfig.register_subclass("remembering")
@dataclass(kw_only=True)
class RememberingConfig(RobotConfig):
    side: int = 16


class Remembering(Robot):
    """Three motors and a camera that always shows the same."""

    config_class, name = RememberingConfig, "remembering"

    def __init__(self, config: RememberingConfig):
        super().__init__(config)
        self.side, self.actions = config.side, list[list[float]]()

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**MOTORS, "front": (self.side, self.side, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict(MOTORS)

    is_connected, is_calibrated = True, True

    def connect(self, calibrate: bool = True) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {**dict.fromkeys(MOTORS, 0.5), "front": np.full((self.side, self.side, 3), 7, np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.actions.append(list(action.values()))
        return action


def main(address: str, task: str, side: str, num: str) -> None:
    config = RobotClientConfig(
        policy_type="act",
        pretrained_name_or_path="the-servers-own",
        robot=RememberingConfig(id="bench", side=int(side)),
        actions_per_chunk=4,
        task=task,
        server_address=address,
        chunk_size_threshold=0.0,  # asks when nothing is left
        fps=FPS,
        aggregate_fn_name="latest_only",
    )
    client = RobotClient(config)
    if not client.start():
        sys.exit("lerobot's client found no server")
    for work in (client.receive_actions, lambda: client.control_loop(task)):
        threading.Thread(target=work, daemon=True).start()
    until = time.monotonic() + PATIENCE_S
    while len(client.robot.actions) < int(num) and time.monotonic() < until:
        time.sleep(0.01)
    client.shutdown_event.set()
    print(json.dumps({"version": __version__, "actions": client.robot.actions[: int(num)]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
