"""Waits for the episodes that a robot is still to send."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError

POLL_S = 1.0
SECTIONS = ("demos", "collect", "gate")


def wait_for_robot(config: Config, console: Console, poll_s: float = POLL_S) -> None:
    """Until the folders that `demos.source`, `collect.source` and `gate.source` name hold as many episodes as are asked for.

    Raises UserError where no source is a folder that a server fills.
    """
    wanted = {section: num for section in SECTIONS if (num := _wanted(config, section))}
    if not wanted:
        raise UserError(
            "--from-robot: neither demos.source, collect.source nor gate.source names a folder; set collect.source to "
            "RUN/robot/store/collect of a `wmpo serve RUN`"
        )
    with Progress(console=console, transient=True) as bars:
        tasks = {section: bars.add_task(f"episodes of robots ({section})", total=wanted[section]) for section in wanted}
        while True:
            present = {section: _present(config, section) for section in wanted}
            for section, count in present.items():
                bars.update(tasks[section], completed=min(count, wanted[section]))
            if all(present[section] >= num for section, num in wanted.items()):
                return
            time.sleep(poll_s)


def _wanted(config: Config, section: str) -> int:
    settings = getattr(config, section)
    path = Path(settings.source).expanduser()
    return settings.num_trajectories if settings.source and not path.is_file() else 0


def _present(config: Config, section: str) -> int:
    """Episodes in the folder of a section: a robot's are one in a file."""
    return sum(1 for _ in Path(getattr(config, section).source).expanduser().glob("*.parquet"))
