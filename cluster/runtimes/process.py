"""What this process holds of its machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def held_by_process() -> tuple[int, int, float]:
    """(resident bytes, reserved bytes of GPU memory, share of the last second that the GPU was busy); 0 for what is not there."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    torch = sys.modules.get("torch")  # a process that has not imported it holds no GPU
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return resident, 0, 0.0
    return resident, torch.cuda.memory_reserved(), _utilisation(torch)


def _utilisation(torch) -> float:
    try:
        return torch.cuda.utilization() / 100
    except (ModuleNotFoundError, RuntimeError):  # needs pynvml, which not every build brings
        return 0.0
