"""Every script after the other, each in a process of its own, so that none finds another's memory taken."""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = ("imagination", "policy_act", "learner_step", "weight_update", "imagined_update")


def main() -> None:
    failed = [
        script
        for script in SCRIPTS
        if subprocess.run([sys.executable, "-m", f"benchmarks.gpu.{script}", *sys.argv[1:]], check=False).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
