"""Whether other packages read what we export, and we what they write.

    make check-exchange    -> benchmarks/results/exchange.json

In another Python (see `make exchange-env`), lerobot opens our export of LeRobot's layout, and robomimic our HDF5: every frame,
action, length, task and outcome is compared, and the statistics of the actions. lerobot then writes a data set of the same
frames, which we import. Ends with exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.foreign_python import ask, foreign_python
from benchmarks.results_file import write_results
from benchmarks.scenes import DIMS, scene
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import about_of
from wmpo_ray.data.episodes import RaggedFrames
from wmpo_ray.data.exchange.importing import import_episodes
from wmpo_ray.data.exchange.lerobot_export import IMAGE_KEY as LEROBOT_KEY
from wmpo_ray.data.exchange.lerobot_export import export_lerobot
from wmpo_ray.data.exchange.robomimic import IMAGE_KEY
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import load_episodes, save_episodes

NUM, STEPS, SIZE, FPS = 12, 20, 32, 20
TASKS = ("push the block", "put the block into the pocket")


def episodes() -> Episodes:
    """Of several lengths and two tasks."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(3, STEPS + 1, NUM)
    return Episodes(
        RaggedFrames([scene(i, int(length), SIZE) for i, length in enumerate(lengths)], STEPS, (SIZE, SIZE, 3)),
        chance.uniform(-1, 1, (NUM, STEPS, DIMS)).astype(np.float32),
        lengths,
        np.arange(NUM) % 3 > 0,
        tuple(TASKS[i % 2] for i in range(NUM)),
        np.arange(NUM),
    )


def check_lerobot_reads(path: Path, given: Episodes, python: Path) -> dict[str, bool]:
    folder, out = path.parent / "lerobot", path.parent / "lerobot.npz"
    export_lerobot(path, folder, fps=FPS)
    ask(python, "dump", "lerobot", folder, LEROBOT_KEY, out)
    arrays, facts = _dumped(out)
    # One row more for each episode, with its last frame and the last action again.
    actions = [given.actions[i, np.minimum(np.arange(n + 1), n - 1)] for i, n in enumerate(given.lengths)]
    stored, found = about_of(path).statistics, facts["stats"]["action"]
    assert stored is not None
    return {
        "lengths": arrays["lengths"].tolist() == (given.lengths + 1).tolist(),
        "frames": np.array_equal(arrays["frames"], np.concatenate(_videos(given))),
        "actions": np.array_equal(arrays["actions"], np.concatenate(actions)),
        "tasks": facts["tasks"] == list(given.instructions),
        "outcomes": facts["success"] == given.success.tolist(),
        "times": facts["fps"] == FPS,
        "statistics_of_actions": all(
            np.allclose(found[name], getattr(stored, name), 1e-6)
            for name in ("mean", "std", "min", "max", "q01", "q99")
        ),
        "statistics_of_frames": np.shape(facts["stats"][LEROBOT_KEY]["mean"]) == (3, 1, 1),
    }


def check_lerobot_writes(path: Path, given: Episodes, python: Path) -> dict[str, bool]:
    """lerobot has an action for each frame: the last one of an episode is dropped by the import."""
    folder, arrays = path.parent / "written", path.parent / "in.npz"
    executed = [given.actions[i, :n] for i, n in enumerate(given.lengths)]
    np.savez(
        arrays,
        frames=np.concatenate([video[:-1] for video in _videos(given)]),
        actions=np.concatenate(executed),
        lengths=given.lengths,
        tasks=np.array(json.dumps(given.instructions)),
    )
    ask(python, "write", "lerobot", folder, LEROBOT_KEY, arrays)
    import_episodes(folder, path.parent / "imported.parquet")
    found = load_episodes(path.parent / "imported.parquet")
    expected = [video[:-1] for video in _videos(given)]
    return {
        "lengths": found.lengths.tolist() == (given.lengths - 1).tolist(),
        "frames": all(map(np.array_equal, _videos(found), expected)),
        "actions": all(np.array_equal(found.actions[i, :n], executed[i][:n]) for i, n in enumerate(found.lengths)),
        "tasks": found.instructions == given.instructions,
    }


def check_robomimic_reads(path: Path, given: Episodes, python: Path) -> dict[str, bool]:
    file, out = path.parent / "a.hdf5", path.parent / "robomimic.npz"
    export_robomimic(path, file)
    ask(python, "dump", "robomimic", file, IMAGE_KEY, out)
    arrays, facts = _dumped(out)
    return {
        "demos": facts["demos"] == [f"demo_{i}" for i in range(NUM)],
        "lengths": arrays["lengths"].tolist() == given.lengths.tolist(),
        "frames": np.array_equal(arrays["frames"], np.concatenate([video[:-1] for video in _videos(given)])),
        "actions": np.array_equal(
            arrays["actions"], np.concatenate([given.actions[i, :n] for i, n in enumerate(given.lengths)])
        ),
    }


CHECKS = {
    "lerobot_reads_ours": check_lerobot_reads,
    "we_read_lerobots": check_lerobot_writes,
    "robomimic_reads_ours": check_robomimic_reads,
}


def _videos(given: Episodes) -> list[np.ndarray]:
    return [given.frames[i, : int(n) + 1] for i, n in enumerate(given.lengths)]


def _dumped(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("frames", "actions", "lengths")}, json.loads(str(arrays["facts"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", type=Path, help="a Python with lerobot and robomimic; that of `make exchange-env` if absent"
    )
    parser.add_argument("--no-results", action="store_true", help="print the verdicts and write nothing")
    options = parser.parse_args()
    python, figures = foreign_python(options.python), {}
    for name, check in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            given, path = episodes(), Path(folder) / "a.parquet"
            save_episodes(path, given)
            for what, is_same in check(path, given, python).items():
                print(f"{name}/{what}: {'the same' if is_same else 'DIFFERENT'}", flush=True)
                figures[f"{name}/{what}"] = {"value": int(is_same), "unit": "1: the same, 0: not"}
    for name, version in ask(python, "versions").items():
        figures[f"versions/{name}"] = {"value": version, "unit": "version that was run"}
    if not options.no_results:
        print(write_results("exchange", figures, "python -m benchmarks.exchange"))
    if not all(figure["value"] for figure in figures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
