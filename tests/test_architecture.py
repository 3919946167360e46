"""The import arrows: wmpo_client <- wmpo_ray <- actors, learners <- cluster <- benchmarks, tests; only cluster imports ray."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.house import loops, survey

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "wmpo_client": {"wmpo_ray", "actors", "learners", "cluster", "benchmarks", "tests", "ray", "torch", "pydantic"},
    "wmpo_ray": {"actors", "learners", "cluster", "benchmarks", "tests", "ray"},
    "actors": {"learners", "cluster", "benchmarks", "tests", "ray"},
    "learners": {"actors", "cluster", "benchmarks", "tests", "ray"},
    "cluster": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
    "tests": {"ray"},
    "tests/cluster": set(),
}
# The two entries, of the command line and of Python: both run the pipeline, and import it when they are asked to.
ALLOWED = {("wmpo_ray/__main__.py", "cluster"), ("wmpo_ray/api.py", "cluster")}


class Import(NamedTuple):
    module: str  # absolute, "wmpo_ray.policies.tiny"
    line: int


def find_imports(source: str, path: str) -> Iterator[Import]:
    """Every import in a file, wherever it stands: at the top, inside a function, relative, or by a literal name."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [name.value for name in node.args[:1] if isinstance(name, ast.Constant)]
            yield from (Import(name, node.lineno) for name in names)


def violations(source: str, path: str) -> list[str]:
    """A line for each import that goes against an arrow: file, line, import."""
    room = max((room for room in FORBIDDEN if path.startswith(f"{room}/")), key=len)
    found = []
    for module, line in find_imports(source, path):
        top = module.split(".")[0]
        if top in FORBIDDEN[room] and (path, top) not in ALLOWED:
            found.append(f"{path}:{line} imports {module}: {room} must not import {top}")
    return found


def source_files() -> list[Path]:
    tops = {room.split("/")[0] for room in FORBIDDEN}
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def room_of(module: str, top: str) -> str | None:
    """The sub-folder of a top folder, or the file directly in it, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == top and len(parts) > 1 else None


def room_edges(top: str) -> dict[str, set[str]]:
    """Which rooms of a top folder import which."""
    edges: dict[str, set[str]] = {}
    for path in (ROOT / top).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        room = room_of(name.removesuffix(".py").replace("/", "."), top)
        targets = {room_of(module, top) for module, _ in find_imports(path.read_text(), name)}
        edges.setdefault(str(room), set()).update(target for target in targets if target and target != room)
    return edges


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """Names along one cycle of a directed graph, the first repeated at the end, or None."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for successor in sorted(edges.get(node, ())):
            if cycle := visit(successor, [*trail, node]):
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(edges) if (cycle := visit(node, []))), None)


def test_every_import_follows_the_arrows():
    files = source_files()
    assert {path.relative_to(ROOT).parts[0] for path in files} == {room.split("/")[0] for room in FORBIDDEN}
    found = [line for path in files for line in violations(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("top", "room", "imported"), [("wmpo_ray", "parity", "policies"), ("cluster", "recipes", "loop")]
)
def test_the_rooms_form_no_cycle(top, room, imported):
    edges = room_edges(top)
    assert imported in edges[room], "the graph misses an import that is there"
    cycle = find_cycle(edges)
    assert cycle is None, " -> ".join(cycle or [])


@pytest.mark.parametrize(
    ("path", "source", "offender"),
    [
        ("wmpo_ray/reward_models/decisions.py", "import ray", "wmpo_ray/reward_models/decisions.py:1 imports ray:"),
        (
            "wmpo_ray/data/store.py",
            "def f():\n    from ray.data import read",
            "wmpo_ray/data/store.py:2 imports ray.data",
        ),
        (
            "wmpo_ray/reward_models/decisions.py",
            "from cluster.loop.train import main",
            "wmpo_ray/reward_models/decisions.py:1 imports cluster.loop.train",
        ),
        ("wmpo_ray/__main__.py", "import actors.reward_actor", "imports actors.reward_actor"),
        (
            "wmpo_ray/registry.py",
            "from importlib import import_module\nimport_module('ray.util')",
            "py:2 imports ray.util",
        ),
        ("actors/reward_actor.py", "from learners import x", "actors must not import learners"),
        ("wmpo_client/broker.py", "def f():\n    import torch", "wmpo_client/broker.py:2 imports torch"),
        ("wmpo_client/scenes.py", "from wmpo_ray.core import types", "wmpo_client must not import wmpo_ray"),
        ("learners/policy_learner.py", "import numpy, actors", "learners must not import actors"),
        ("cluster/loop/train.py", "from benchmarks.demo import seeds", "cluster must not import benchmarks"),
        ("tests/rollout/test_judge.py", "import ray", "tests must not import ray"),
    ],
)
def test_an_import_against_an_arrow_is_named_with_file_and_line(path, source, offender):
    (found,) = violations(source, path)
    assert offender in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("wmpo_ray/__main__.py", "from cluster.cli.app import app"),
        ("wmpo_ray/reward_models/decisions.py", "import rayon\nfrom wmpo_ray import types  # import ray"),
        ("wmpo_ray/policies/tiny.py", "from . import action_tokens\nfrom ..types import Batch"),
        ("actors/reward_actor.py", "from wmpo_ray.reward_models.decisions import score_videos"),
        ("cluster/loop/train.py", "import ray\nfrom actors import reward_actor\nfrom learners import grpo_learner"),
        ("tests/cluster/test_train.py", "import ray"),
        ("benchmarks/demo.py", "import ray\nfrom cluster import pipeline"),
    ],
)
def test_imports_along_the_arrows_pass(path, source):
    assert violations(source, path) == []


PRIVATE_TO_RAY = re.compile(r"\bray(\.\w+)*\._(?!_)|\bray\.train\.(v2\._internal|torch\.config)\b")


def uses_private_names(source: str, path: str) -> bool:
    """Whether a file imports private names of Ray, reads them as attributes, or names them in a string."""
    found = [module for module, _ in find_imports(source, path)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return any(PRIVATE_TO_RAY.search(name) for name in found)


def test_private_names_of_ray_stand_in_one_file():
    names = {path.relative_to(ROOT).as_posix(): path.read_text() for path in source_files()}
    found = {name for name, source in names.items() if uses_private_names(source, name)}
    assert found - {"tests/test_architecture.py"} == {"cluster/host/ray_private.py"}  # this file has the examples below


@pytest.mark.parametrize(
    ("source", "is_private"),
    [
        ("from ray._private.node import Node", True),
        ("import ray\nray._raylet.GcsClient", True),
        ("PROVIDER = 'ray.autoscaler._private.fake_multi_node.node_provider'", True),
        ("def f():\n    from ray.train.torch.config import _TorchBackend", True),
        ("import ray\nray.__version__\nray_tools._kept", False),
        ("from ray.autoscaler.sdk import request_resources\nfrom array_tools._private import x", False),
    ],
)
def test_a_private_name_of_ray_is_found_wherever_it_stands(source, is_private):
    assert uses_private_names(source, "benchmarks/soak.py") == is_private


def test_no_folders_and_no_files_import_each_other_in_a_loop():
    house = survey()
    assert house.folder_loops == [] and house.file_circles == []


def test_floors_files_and_functions_stay_small_and_a_file_name_stands_once():
    house = survey()
    assert house.names_twice == []
    assert house.largest_floor[0] <= 20, house.largest_floor
    assert house.largest_file[0] <= 300, house.largest_file
    assert house.longest_function[0] <= 40, house.longest_function


@pytest.mark.parametrize("top", ["cluster", "benchmarks", "tests"])
def test_a_long_file_and_a_long_function_are_found_in_tests_too(tmp_path, top):
    for room in {"cluster", top}:
        (tmp_path / room).mkdir()
        (tmp_path / room / "short.py").write_text("def f():\n    pass\n")
    (tmp_path / top / "long.py").write_text("def f():\n" + "    pass\n" * 400)
    house = survey(tmp_path)
    assert house.largest_file == (401, f"{top}/long.py") and house.longest_function == (401, f"{top}/long.py:f")


def test_no_test_module_is_imported_by_another():
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "tests").rglob("*.py")
        for module, _ in find_imports(path.read_text(), path.relative_to(ROOT).as_posix())
        if module.startswith("tests.") and any(part.startswith("test_") for part in module.split("."))
    ]
    assert found == []


def test_a_loop_of_imports_is_found():
    assert loops({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_relative_imports_are_resolved():
    (found,) = find_imports("from ..world_models import stdit", "wmpo_ray/policies/tiny.py")
    assert found == Import("wmpo_ray.world_models.stdit", 1)


def test_a_cycle_is_found_and_spelled_out():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}}) is None
