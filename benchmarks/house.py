"""How orderly the tree is: files on a floor, lines in a file and a function, loops of imports, names that stand twice.

    python -m benchmarks.house                      print what the tree says
    python -m benchmarks.house --weights OLD NEW --ci-log FILE
        compare the final weights of the runs in two folders, read what `.ci/run` printed, and write results/house.json

Files that a change touches are counted in benchmarks/files_per_change.json, which says which files they are.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results_file import RESULTS_DIR, write_results

ROOT = Path(__file__).parents[1]
CHANGES = Path(__file__).with_name("files_per_change.json")
ENTRIES = ("wmpo_ray.__main__", "wmpo_ray.api")  # the two doors of the library to the cluster
SOURCE = ("wmpo_client", "wmpo_ray", "actors", "learners", "cluster")
GENERATED = ("_pb2.py", "_pb2_grpc.py")  # by the compiler of wmpo.proto
WHOLE = (*SOURCE, "benchmarks", "tests")


class House(NamedTuple):
    """File and function lengths count benchmarks and tests too; floors, loops and names are those of the source alone."""

    largest_floor: tuple[int, str]  # files in one folder, its name
    largest_file: tuple[int, str]  # lines
    longest_function: tuple[int, str]  # lines
    folder_loops: list[str]
    file_circles: list[str]
    names_twice: list[str]  # of files


def survey(root: Path = ROOT) -> House:
    """Walk the tree."""
    files, everything = source_files(root, SOURCE), source_files(root, WHOLE)
    floors = Counter(path.parent.relative_to(root).as_posix() for path in files if path.name != "__init__.py")
    names = Counter(path.name for path in files if not path.name.startswith("__"))
    graph = import_graph(root)
    return House(
        max((count, floor) for floor, count in floors.items()),
        max((len(path.read_text().splitlines()), path.relative_to(root).as_posix()) for path in everything),
        max((lines, name) for path in everything for lines, name in function_lengths(path, root)),
        loops(folder_graph(graph, root)),
        loops(graph),
        sorted(name for name, count in names.items() if count > 1),
    )


def source_files(root: Path, tops: tuple[str, ...]) -> list[Path]:
    return sorted(path for top in tops for path in (root / top).rglob("*.py") if not path.name.endswith(GENERATED))


def function_lengths(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(lines, "file:function") of every function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{path.relative_to(root).as_posix()}:{node.name}"


def import_graph(root: Path, tops: tuple[str, ...] = SOURCE) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, wherever in the file."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in source_files(root, tops)}
    return {module: set(_imports(path, module, paths)) for module, path in paths.items() if module not in ENTRIES}


def _imports(path: Path, own: str, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        yield from (name for name in names if name in known and name != own)


def folder_graph(graph: dict[str, set[str]], root: Path) -> dict[str, set[str]]:
    """Folder -> folders that its files import from; a folder and those above it are one household."""
    edges: dict[str, set[str]] = {}
    for module, targets in graph.items():
        here = _folder(module, root)
        for there in (_folder(target, root) for target in targets):
            if not (f"{there}.".startswith(f"{here}.") or f"{here}.".startswith(f"{there}.")):
                edges.setdefault(here, set()).add(there)
    return edges


def _folder(module: str, root: Path) -> str:
    return module if (root / Path(*module.split("."))).is_dir() else module.rpartition(".")[0]


def loops(graph: dict[str, set[str]]) -> list[str]:
    """The nodes from which a way leads back to themselves, sorted."""

    def reached(node: str) -> set[str]:
        seen: set[str] = set()
        waiting = [node]
        while waiting:
            for following in graph.get(waiting.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return seen

    return sorted(node for node in graph if node in reached(node))


# -- the figures of house.json -----------------------------------------------------------------------------------------


def weights_of(run: Path) -> str:
    """SHA-256 of a run's final weights."""
    (path,) = (run / "models" / "policy").glob("*.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def are_identical(old: Path, new: Path) -> bool:
    """Whether two folders of runs hold runs of the same names with the same final weights."""
    names = sorted(path.name for path in old.iterdir() if path.is_dir())
    return bool(names) and all(weights_of(old / name) == weights_of(new / name) for name in names)


def measured(house: House) -> dict[str, dict[str, Any]]:
    """The figures that the tree itself gives."""
    return {
        "largest_floor": {"value": house.largest_floor[0], "unit": f"files in {house.largest_floor[1]}"},
        "largest_file": {"value": house.largest_file[0], "unit": f"lines, {house.largest_file[1]}"},
        "longest_function": {"value": house.longest_function[0], "unit": f"lines, {house.longest_function[1]}"},
        "folder_loops": {"value": len(house.folder_loops), "unit": "folders on a loop of imports"},
        "file_circles": {"value": len(house.file_circles), "unit": "files on a circle of imports"},
        "names_twice": {"value": len(house.names_twice), "unit": "file names that stand twice"},
    }


def files_per_change() -> dict[str, Any]:
    """The most files that a change of `files_per_change.json` touches, and how many each does."""
    touched = {change: len(files) for change, files in json.loads(CHANGES.read_text()).items()}
    each = ", ".join(f"{change} {count}" for change, count in touched.items())
    return {"value": max(touched.values()), "unit": f"files, its test included: {each}"}


def ci_seconds(log: Path) -> dict[str, Any]:
    """What the steps of `.ci/run` took, and which failed. Raises ValueError where one of them did not come to its end."""
    steps = re.findall(r"^== make (\w+): (\d+) s, exit code (\d+)$", log.read_text(), re.MULTILINE)
    if [name for name, _, _ in steps] != ["setup", "lint", "test"]:
        raise ValueError(f"{log}: the steps that ended are {steps}; .ci/run has setup, lint and test")
    failed = "".join(f"; make {name} failed" for name, _, code in steps if code != "0")
    return {"value": float(sum(int(seconds) for _, seconds, _ in steps)), "unit": f"s{failed}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--ci-log", type=Path, help="what .ci/run printed")
    options = parser.parse_args()
    figures = measured(survey()) | {"files_per_change": files_per_change()}
    print(json.dumps(figures, indent=1))
    if not options.weights:
        return
    figures["weights_identical"] = {"value": int(are_identical(*options.weights)), "unit": "1: yes"}
    if options.ci_log:
        figures["ci_seconds"] = ci_seconds(options.ci_log)
    memory = json.loads((RESULTS_DIR / "memory.json").read_text())["figures"]
    figures["optimize_memory_gb"] = memory["optimize_peak"] | {"unit": "GiB, 1,280 episodes of coffee's size"}
    write_results("house", figures, "python -m benchmarks.house --weights OLD NEW --ci-log FILE")


if __name__ == "__main__":
    main()
