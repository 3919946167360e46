"""The readers of other packages, run by a Python that has them and not this program (see `make exchange-env`).

    python foreign_readers.py windows robomimic FILE KEY    windows a second, once for each line of standard input
    python foreign_readers.py windows lerobot FOLDER KEY
    python foreign_readers.py dump robomimic FILE KEY OUT   what the package reads, as arrays in an .npz file
    python foreign_readers.py dump lerobot FOLDER KEY OUT
    python foreign_readers.py write lerobot FOLDER KEY IN   a data set of the arrays in an .npz file
    python foreign_readers.py versions

It imports nothing of this repository. All print one line of JSON for each answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

FRAMES = 12  # of a window
SEED = 0
PACKAGES = ("robomimic", "lerobot", "h5py", "datasets", "torch", "torchvision", "numpy", "pyarrow")


def robomimic_set(path: str, key: str, mode: str | None, frames: int):
    """robomimic's own reader, with settings of its configurations for images: no padding, no second set of frames."""
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": [], "rgb": [key]}})
    return SequenceDataset(
        path,
        (key,),
        ("actions",),
        seq_length=frames,
        pad_frame_stack=False,
        pad_seq_length=False,
        hdf5_cache_mode=mode,
        load_next_obs=False,
    )


def lerobot_set(folder: str, key: str, frames: int):
    torchvision_without_operators()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if frames == 1:
        return LeRobotDataset("local/exported", root=folder)
    fps = json.loads(Path(folder, "meta/info.json").read_text())["fps"]
    times = [i / fps for i in range(frames)]
    return LeRobotDataset("local/exported", root=folder, delta_timestamps={key: times, "action": times})


def torchvision_without_operators() -> None:
    """lerobot imports torchvision, whose wheel for CUDA does not import beside a torch without it: nothing here uses its operators."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_without_operators.library = library  # it lasts as long as this


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def windows_per_s(
    read: Callable[[int], object], count: int, seconds: float, chance: np.random.Generator, clock: Callable[[], float]
) -> float:
    done, started = 0, clock()
    while (passed := clock() - started) < seconds:
        read(int(chance.integers(count)))
        done += 1
    return done / passed


def serve_windows(package: str, path: str, key: str) -> None:
    """For each line "MODE SECONDS CLOCK" of standard input: windows a second at random places."""
    chance, opened = np.random.default_rng(SEED), {}
    for line in sys.stdin:
        mode, seconds, clock = line.split()
        if mode not in opened:
            made = (
                robomimic_set(path, key, None if mode == "none" else mode, FRAMES) if package == "robomimic" else None
            )
            opened[mode] = lerobot_set(path, key, FRAMES) if made is None else made
        found = opened[mode]
        answer(windows_per_s(found.__getitem__, len(found), float(seconds), chance, CLOCKS[clock]))


def dump(package: str, path: str, key: str, out: str) -> None:
    """All episodes that a package finds: lengths [M], frames [N, H, W, 3] uint8 and actions [N, D], one after the other."""
    if package == "robomimic":
        found = robomimic_set(path, key, "low_dim", 1)
        items = [found[i] for i in range(len(found))]
        frames = np.stack([item["obs"][key][0] for item in items])
        actions = np.stack([item["actions"][0] for item in items])
        lengths = [found._demo_id_to_demo_length[demo] for demo in found.demos]
        facts = {"demos": list(found.demos)}
    else:
        found = lerobot_set(path, key, 1)
        items = [found[i] for i in range(len(found))]
        frames = np.stack([np.rint(np.asarray(item[key]) * 255).astype(np.uint8).transpose(1, 2, 0) for item in items])
        actions = np.stack([np.asarray(item["action"]) for item in items])
        episodes = np.array([int(item["episode_index"]) for item in items])
        lengths = np.bincount(episodes).tolist()
        firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        stats = {
            name: {k: np.asarray(v).tolist() for k, v in values.items()} for name, values in found.meta.stats.items()
        }
        facts = {"tasks": [items[i]["task"] for i in firsts], "fps": found.fps, "stats": stats}
        facts["success"] = [bool(items[i - 1]["next.success"]) for i in np.cumsum(lengths)]
    np.savez(out, frames=frames, actions=actions, lengths=np.array(lengths), facts=np.array(json.dumps(facts)))
    answer(len(lengths))


def write_lerobot(folder: str, key: str, given: str) -> None:
    """A data set as lerobot itself writes it, with images: frames before each action, and the one after the last."""
    torchvision_without_operators()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with np.load(given, allow_pickle=False) as arrays:
        frames, actions, lengths = arrays["frames"], arrays["actions"], arrays["lengths"].tolist()
        tasks = json.loads(str(arrays["tasks"]))
    features = {
        key: {"dtype": "image", "shape": frames.shape[1:], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": actions.shape[1:], "names": None},
    }
    made = LeRobotDataset.create("local/written", 10, features, root=folder, use_videos=False)
    start = 0
    for length, task in zip(lengths, tasks, strict=True):
        for i in range(start, start + length):
            made.add_frame({key: frames[i], "action": actions[i], "task": task})
        made.save_episode()
        start += length
    made.finalize()
    answer(len(lengths))


def answer(value: object) -> None:
    print(json.dumps({"answer": value}), flush=True)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("windows", "dump", "write", "versions"))
    parser.add_argument("package", choices=("robomimic", "lerobot"), nargs="?")
    parser.add_argument("path", nargs="?")
    parser.add_argument("key", nargs="?")
    parser.add_argument("file", nargs="?")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    if options.what == "versions":
        answer(versions())
    elif options.what == "windows":
        serve_windows(options.package, options.path, options.key)
    elif options.what == "dump":
        dump(options.package, options.path, options.key, options.file)
    else:
        write_lerobot(options.path, options.key, options.file)


if __name__ == "__main__":
    main()
