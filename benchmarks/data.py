"""Random windows of frames read from a trajectory file and by other packages, and episodes written a second.

    make bench-data    -> benchmarks/results/data.json
    python -m benchmarks.data --episodes 200 --seconds 1 --rounds 3 --no-results
    python -m benchmarks.data --episodes 400 --seconds 1 --processor-time    beside other work

The same episodes stand in a trajectory file, in two HDF5 files (as robomimic's script writes images unless it is asked to
compress, and compressed, as `wmpo data export` writes them) and in LeRobot's layout. Windows of 12 frames with their actions
are drawn at random. Readers take turns in one run; a ratio is the median of those of the rounds, its interval the range.

There are more frames than the cache of our reader holds. "Nothing kept" is our reader without that cache. robomimic is set
as its configurations for images are (`hdf5_cache_mode="low_dim"`): actions in memory, images from the file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.foreign_python import Reader, ask, foreign_python
from benchmarks.foreign_readers import CLOCKS
from benchmarks.results_file import write_results
from benchmarks.scenes import scene_episodes
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.exchange.hdf5_files import hdf5_library
from wmpo_ray.data.exchange.lerobot_export import IMAGE_KEY as LEROBOT_KEY
from wmpo_ray.data.exchange.lerobot_export import export_lerobot
from wmpo_ray.data.exchange.robomimic import IMAGE_KEY
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import CACHE_BYTES, episode_writer, load_episodes

STEPS, SIZE, WINDOW, BATCH = 50, 64, 12, 64
BATCH_WRITTEN = 50  # episodes
WARM_UP = 3  # times as long as a round


def write_file(path: Path, num: int) -> float:
    """Write scenes to a trajectory file; returns the episodes a second, the drawing of scenes left out."""
    seconds = 0.0
    with episode_writer(path) as writer:
        for first in range(0, num, BATCH_WRITTEN):
            part = scene_episodes(min(BATCH_WRITTEN, num - first), STEPS, SIZE, first)
            started = time.perf_counter()
            writer.append(part)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
    return num / (
        seconds + time.perf_counter() - started
    )  # with the last row group, the flush to the disk and the renaming


def write_plain_hdf5(compressed: Path, out: Path) -> None:
    """The same file without compression and chunks."""
    library = hdf5_library()
    with library.File(compressed) as source, library.File(out, "w") as target:
        data = target.create_group("data")
        data.attrs.update(source["data"].attrs)
        for name, demo in source["data"].items():
            copy = data.create_group(name)
            copy.attrs.update(demo.attrs)
            for key in ("actions", "rewards", "dones", f"obs/{IMAGE_KEY}"):
                copy[key] = demo[key][:]


def our_windows_per_s(episodes: Episodes, seconds: float, chance: np.random.Generator, clock: str = "wall") -> float:
    """Frames and actions of windows at random places, a batch at a time as a training draws them."""
    now, offsets = CLOCKS[clock], np.arange(WINDOW)
    done, started = 0, now()
    while (passed := now() - started) < seconds:
        rows = chance.integers(len(episodes), size=(BATCH, 1))
        steps = chance.integers(STEPS - WINDOW + 1, size=(BATCH, 1)) + offsets
        frames, actions = episodes.frames[rows, steps], episodes.actions[rows, steps]
        assert len(frames) == len(actions) == BATCH
        done += BATCH
    return done / passed


OTHERS = {  # reader -> (package, its file, camera, how it keeps what it read)
    "hdf5_plain": ("robomimic", "plain.hdf5", IMAGE_KEY, "low_dim"),
    "hdf5_gzip": ("robomimic", "gzip.hdf5", IMAGE_KEY, "low_dim"),
    "lerobot": ("lerobot", "lerobot", LEROBOT_KEY, "default"),
}
RATIOS = {
    "windows_ratio_hdf5": ("hdf5_plain", "robomimic's SequenceDataset, HDF5 without compression"),
    "windows_ratio_hdf5_gzip": ("hdf5_gzip", "robomimic's SequenceDataset, HDF5 as we export it"),
    "windows_ratio_lerobot": ("lerobot", "lerobot's LeRobotDataset, our export"),
}
OURS = {"": "ours", "nothing_kept/": "ours_nothing_kept"}  # the second without our cache


def measure(options: argparse.Namespace, folder: Path, python: Path) -> dict[str, dict[str, Any]]:
    path = folder / "a.parquet"
    written = [write_file(path, min(options.episodes, 200)) for _ in range(options.rounds)]
    write_file(path, options.episodes)
    export_robomimic(path, folder / "gzip.hdf5")
    write_plain_hdf5(folder / "gzip.hdf5", folder / "plain.hdf5")
    export_lerobot(path, folder / "lerobot", fps=20)
    print(f"{options.episodes} episodes written and exported", flush=True)
    found = read_in_turns(options, path, python)
    files = {"ours": path} | {name: folder / file for name, (_, file, _, _) in OTHERS.items()}
    figures = {
        f"{prefix}{name}": spread(
            [a / b for a, b in zip(found[ours], found[other], strict=True)],
            f"times as many windows a second as {what}" + (", without our cache" if prefix else ""),
        )
        for prefix, ours in OURS.items()
        for name, (other, what) in RATIOS.items()
    }
    for name, rates in found.items():
        figures[f"windows_per_s/{name}"] = spread(rates, f"windows of {WINDOW} frames a second")
    figures["write_episodes_per_s"] = spread(
        written, f"episodes of {STEPS + 1} frames of {SIZE}x{SIZE} a second, on disk"
    )
    figures["frames_mib"] = {"value": round(options.episodes * (STEPS + 1) * SIZE**2 * 3 / 2**20), "unit": "MiB in all"}
    figures["cache_mib"] = {"value": CACHE_BYTES >> 20, "unit": "MiB of decoded frames that our reader keeps"}
    for name, file in files.items():
        figures[f"file_mib/{name}"] = {"value": round(size_of(file) / 2**20, 1), "unit": "MiB"}
    return figures


def read_in_turns(options: argparse.Namespace, path: Path, python: Path) -> dict[str, list[float]]:
    """Windows a second of each reader, by round; a longer round before them, in which caches fill, is not counted."""
    chance, found = np.random.default_rng(0), dict[str, list[float]]()
    ours = {"ours": load_episodes(path), "ours_nothing_kept": load_episodes(path, cache_bytes=0)}
    with ExitStack() as opened:
        readers = {
            name: (opened.enter_context(Reader(python, package, path.parent / file, key, path.parent / "log")), mode)
            for name, (package, file, key, mode) in OTHERS.items()
        }
        for number in range(options.rounds + 1):
            seconds = options.seconds * (1 if number else WARM_UP)
            rates = {name: our_windows_per_s(each, seconds, chance) for name, each in ours.items()}
            rates |= {name: reader.windows_per_s(mode, seconds) for name, (reader, mode) in readers.items()}
            print({name: round(rate) for name, rate in rates.items()}, "" if number else "(not counted)", flush=True)
            for name, rate in rates.items() if number else ():
                found.setdefault(name, []).append(rate)
    return found


def measure_processor_time(options: argparse.Namespace, folder: Path, python: Path) -> dict[str, dict[str, Any]]:
    """Ours without its cache beside robomimic's, by the processor time of each: what else the machine does hardly counts."""
    path = folder / "a.parquet"
    write_file(path, options.episodes)
    export_robomimic(path, folder / "gzip.hdf5")
    write_plain_hdf5(folder / "gzip.hdf5", folder / "plain.hdf5")
    ours, chance, found = load_episodes(path, cache_bytes=0), np.random.default_rng(0), []
    package, file, key, mode = OTHERS["hdf5_plain"]
    with Reader(python, package, folder / file, key, folder / "log") as reader:
        for number in range(options.rounds + 1):
            seconds = options.seconds * (1 if number else WARM_UP)
            pair = (
                our_windows_per_s(ours, seconds, chance, "processor"),
                reader.windows_per_s(mode, seconds, "processor"),
            )
            print(*map(round, pair), "" if number else "(not counted)", flush=True)
            found += [pair] if number else []
    unit = f"windows of {WINDOW} frames a second of processor time"
    return {
        "nothing_kept/windows_ratio_hdf5": spread([a / b for a, b in found], "times as many " + unit),
        "windows_per_s/ours_nothing_kept": spread([a for a, _ in found], unit),
        "windows_per_s/hdf5_plain": spread([b for _, b in found], unit),
        "frames_mib": {"value": round(options.episodes * (STEPS + 1) * SIZE**2 * 3 / 2**20), "unit": "MiB in all"},
    }


def spread(values: list[float], unit: str) -> dict[str, Any]:
    digits = 2 if max(values) < 100 else 0
    low, middle, high = (round(each(values), digits) for each in (min, statistics.median, max))
    return {"value": middle, "unit": unit, "interval": [low, high]}


def size_of(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each reader in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--python", type=Path, help="a Python with lerobot and robomimic; that of `make exchange-env` if absent"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="only ours beside robomimic's, and what they cost the processor"
    )
    parser.add_argument("--no-results", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    python = foreign_python(options.python)
    with tempfile.TemporaryDirectory() as folder:
        figures = (measure_processor_time if options.processor_time else measure)(options, Path(folder), python)
    for name, version in ask(python, "versions").items():
        figures[f"versions/{name}"] = {"value": version, "unit": "version beside which it was measured"}
    for name, figure in figures.items():
        print(f"{name}: {figure['value']} {figure.get('interval', '')} {figure['unit']}")
    command = f"python -m benchmarks.data --episodes {options.episodes} --seconds {options.seconds:g} --rounds {options.rounds}"
    if options.processor_time and not options.no_results:
        print(write_results("data_processor_time", figures, f"{command} --processor-time"))
    elif not options.no_results:
        print(write_results("data", figures, command))


if __name__ == "__main__":
    main()
