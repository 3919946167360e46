"""Record the start states that tasks of robosuite are evaluated on, with the versions that drew them.

python -m benchmarks.robosuite_starts
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from wmpo_ray.environments.robosuite import evaluation_starts
from wmpo_ray.environments.robosuite.evaluation_starts import FOLDER, TASKS, VERSIONS_FILE, draw_starts
from wmpo_ray.environments.robosuite.installed import SUPPORTED, version_of
from wmpo_ray.environments.robosuite.simulator import Simulator


def main() -> None:
    folder = Path(evaluation_starts.__file__).parent / FOLDER
    folder.mkdir(exist_ok=True)
    for task in TASKS:
        seeds, qpos = draw_starts(Simulator(task))
        np.savez_compressed(folder / f"{task}.npz", seeds=seeds, qpos=qpos)
    versions = {package: version_of(package) for package in SUPPORTED}
    (folder / VERSIONS_FILE).write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
