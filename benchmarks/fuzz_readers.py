"""Mutated files of every format that is read: each must give a UserError or a whole import, and nothing else.

    make fuzz-readers                  1,200 files for each reader -> benchmarks/results/fuzz.json
    python -m benchmarks.fuzz_readers --files 200 --readers rollout_tar

Each file is read in a process of its own with a limit on its memory and its time, so that a crash of a library, a hang or
a huge allocation is seen for what it is. File i of a reader is made from the seed i: a failure can be repeated by its
number. What was read without an error is read again from the trajectory file and checked.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzzed_files import SAMPLES, files_of, mutated
from benchmarks.results_file import write_results
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.file_facts import facts_of, problems_of
from wmpo_ray.data.store import load_episodes

MAX_MEMORY_GIB = 0.5  # that a read may take on top of what the process has, touched or not
HARD_LIMIT_GIB = 16.0  # beyond it the kernel says no
MAX_SECONDS = 20
IMPORTED, REFUSED, BROKEN = 0, 1, 2  # exit codes of a process


def read_import(path: Path) -> None:
    """Import a file, and look at all of what was written."""
    out = path.with_suffix(".imported")
    out.unlink(missing_ok=True)
    try:
        import_episodes(path, out, ImportOptions(instruction="push"))
    except UserError:
        if out.exists() or list(path.parent.glob("*.tmp-*")):
            raise AssertionError("a failed import left a file") from None
        raise
    if problems := problems_of(out):
        raise AssertionError(f"an import wrote an unsound file: {problems[0]}")


def read_store(path: Path) -> None:
    """Read all of a trajectory file."""
    facts_of(path)
    np.asarray(load_episodes(path).frames)
    problems_of(path)


READERS: dict[str, Callable[[Path], None]] = {
    "robomimic_hdf5": read_import,
    "rollout_tar": read_import,
    "lerobot_folder": read_import,
    "trajectory_parquet": read_store,
}


def outcome(read: Callable[[Path], None], path: Path) -> tuple[str, int]:
    """("imported", "refused" or what went wrong, peak memory in KiB) of reading a file in a child process."""
    started, child = time.monotonic(), os.fork()
    if not child:
        os._exit(_read_limited(read, path))
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hung = number == signal.SIGALRM
        return (f"hang of {time.monotonic() - started:.0f} s" if hung else signal.Signals(number).name), usage.ru_maxrss
    return {IMPORTED: "imported", REFUSED: "refused"}.get(
        os.WEXITSTATUS(status), "another exception or a huge allocation"
    ), usage.ru_maxrss


def _read_limited(read: Callable[[Path], None], path: Path) -> int:
    """In the child: an exit code, for any exception too."""
    before = _kib("VmSize")
    limit = before * 2**10 + int(HARD_LIMIT_GIB * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.alarm(MAX_SECONDS)
    code, failure = IMPORTED, ""
    try:
        read(path)
    except UserError as error:
        code, failure = REFUSED, str(error)
        if isinstance(error.__cause__, MemoryError):  # what the hard limit stopped
            code = BROKEN
    except BaseException as error:  # noqa: BLE001  what comes is the finding
        code, failure = BROKEN, f"{type(error).__name__}: {error}"
    # Address space, so that memory counts that was asked for and never touched.
    if (taken := _kib("VmPeak") - before) > MAX_MEMORY_GIB * 2**20:
        code, failure = BROKEN, f"{taken} KiB taken; {failure}"
    if code == BROKEN:
        print(failure, flush=True)
    return code


def _kib(name: str) -> int:
    """A size of this process that the kernel counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def fuzz(name: str, num_files: int, folder: Path) -> dict[str, Any]:
    """Figures of one reader."""
    sample, read = SAMPLES[name](folder), READERS[name]
    baseline = outcome(read, sample)
    if baseline[0] != "imported":
        raise RuntimeError(f"{name}: the sample itself is {baseline[0]}")
    files = {path: path.read_bytes() for path in files_of(sample)}
    counts, peak = Counter[str](), 0
    started = time.monotonic()
    for number in range(num_files):
        path, good = list(files.items())[number % len(files)]
        path.write_bytes(mutated(good, random.Random(number)))
        found, kib = outcome(read, sample)
        path.write_bytes(good)
        counts[found] += 1
        peak = max(peak, kib - baseline[1])
        if found not in ("imported", "refused"):
            print(f"{name}: file {number}: {found}", flush=True)
    others = num_files - counts["imported"] - counts["refused"]
    seconds = time.monotonic() - started
    print(f"{name}: {dict(counts)}, {seconds:.0f} s", flush=True)
    return {
        f"{name}/files": {"value": num_files, "unit": "mutated files"},
        f"{name}/refused": {"value": counts["refused"], "unit": "files refused with a UserError"},
        f"{name}/imported": {"value": counts["imported"], "unit": "files read as a whole and found sound"},
        f"{name}/others": {"value": others, "unit": "files with another exception, a crash, a hang or too much memory"},
        f"{name}/extra_memory": {
            "value": round(peak / 1024, 1),
            "unit": "MiB at most above that of the unchanged file",
        },
        f"{name}/seconds": {"value": round(seconds / num_files, 4), "unit": "s a file, with its process"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1200, help="for each reader")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    # In memory where there is such a place: each import flushes its file to the disk.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="wmpo-fuzz-", dir=place) as folder:
        for name in options.readers:
            figures |= fuzz(name, options.files, Path(folder))
    if options.readers == list(READERS):
        print(write_results("fuzz", figures, f"python -m benchmarks.fuzz_readers --files {options.files}"))
    if any(figure["value"] for name, figure in figures.items() if name.endswith("/others")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
