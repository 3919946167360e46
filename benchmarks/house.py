"""What the tree itself says of its order: floors, files, functions, folder loops, names; the rest of house.json beside it.

python -m benchmarks.house                      the figures of the tree, printed
python -m benchmarks.house --weights OLD NEW    compares the final weights of two folders of runs, and writes house.json
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.results_file import RESULTS_DIR, write_results

ROOT = Path(__file__).parents[1]
SOURCE = ("wmpo_ray", "actors", "learners", "cluster")
WHOLE = (*SOURCE, "benchmarks", "tests")


class House(NamedTuple):
    largest_floor: tuple[int, str]  # files in one folder, its name
    largest_file: tuple[int, str]  # lines
    longest_function: tuple[int, str]  # lines
    folder_loops: list[str]
    file_circles: list[str]
    names_twice: list[str]  # of files, without benchmarks and tests


def survey(root: Path = ROOT) -> House:
    """Walk the source."""
    files = source_files(root, SOURCE)
    floors = Counter(path.parent.relative_to(root).as_posix() for path in files if path.name != "__init__.py")
    names = Counter(path.name for path in files if not path.name.startswith("__"))
    graph = import_graph(root)
    return House(
        max((count, floor) for floor, count in floors.items()),
        max((len(path.read_text().splitlines()), path.relative_to(root).as_posix()) for path in files),
        max((lines, name) for path in files for lines, name in function_lengths(path, root)),
        loops(folder_graph(graph, root)),
        loops(graph),
        sorted(name for name, count in names.items() if count > 1),
    )


def source_files(root: Path, tops: tuple[str, ...]) -> list[Path]:
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def function_lengths(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(lines, "file:function") of every function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{path.relative_to(root).as_posix()}:{node.name}"


def import_graph(root: Path, tops: tuple[str, ...] = SOURCE) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, wherever in the file."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in source_files(root, tops)}
    return {module: set(_imports(path, module, paths)) for module, path in paths.items()}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--changes", type=Path, help="JSON: change -> files that it touched, counted by hand in docs")
    parser.add_argument("--ci-seconds", type=float, help="what .ci/run printed last")
    options = parser.parse_args()
    house = survey()
    figures: dict = {
        "largest_floor": {"value": house.largest_floor[0], "unit": f"files in {house.largest_floor[1]}"},
        "largest_file": {"value": house.largest_file[0], "unit": f"lines, {house.largest_file[1]}"},
        "longest_function": {"value": house.longest_function[0], "unit": f"lines, {house.longest_function[1]}"},
        "folder_loops": {"value": len(house.folder_loops), "unit": "folders on a loop of imports"},
        "file_circles": {"value": len(house.file_circles), "unit": "files on a circle of imports"},
        "names_twice": {"value": len(house.names_twice), "unit": "file names that stand twice"},
    }
    print(json.dumps(figures, indent=1))
    if options.weights:
        figures["weights_identical"] = {"value": int(are_identical(*options.weights)), "unit": "1: yes"}
    if options.changes:
        touched = json.loads(options.changes.read_text())
        figures["files_per_change"] = {"value": max(touched.values()), "unit": "files, the most", "each": touched}
    if options.ci_seconds:
        figures["ci_seconds"] = {"value": options.ci_seconds, "unit": "s"}
    memory = RESULTS_DIR / "memory.json"
    if memory.is_file():
        measured = json.loads(memory.read_text())["figures"]
        figures["optimize_memory_gb"] = next(v for k, v in measured.items() if "optimize" in k)
    if options.weights:
        write_results("house", figures)


if __name__ == "__main__":
    main()
