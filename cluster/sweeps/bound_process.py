"""`wmpo` in a process that ends when the one that began it does: `python -m cluster.sweeps.bound_process PARENT run ...`.

The kernel asks it to end, so a run whose sweep was killed leaves its checkpoint and its lock: the sweep can go on at once.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def main() -> None:
    parent = int(sys.argv.pop(1))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before it was watched
            raise SystemExit("the process that began this run has ended")
    runpy.run_module("wmpo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
