"""Every command that a document shows is run by a test or by the make target that is named above it."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.documents import ROOT, Block, command_blocks, documents, find_blocks

BLOCKS = [block for document in documents() for block in command_blocks(document)]


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def recipe(target: str) -> str:
    text = (ROOT / "Makefile").read_text()
    match = re.search(rf"^{re.escape(target)}:(?!=).*\n((?:\t.*\n|\n)*)", text, re.MULTILINE)
    return match[1] if match else ""


def problems(block: Block) -> list[str]:
    """What keeps the commands of a block from being run, one line each."""
    where = f"{block.document}:{block.line}"
    if not block.markers:
        return [f"{where}: nothing runs these commands; put <!-- runs: TEST or make TARGET --> above them"]
    found = []
    for marker in block.markers:
        found += [f"{where}: {problem}" for problem in _problems_of(marker, block.document)]
    if all(marker.startswith("make ") for marker in block.markers):
        run = "\n".join(recipe(marker.split()[1]) for marker in block.markers)
        for command in block.commands:
            asked = " ".join(command.split()[:2]) if command.startswith("make ") else command
            program = re.sub(r"^wmpo ", "python -m wmpo_ray ", asked)
            if asked not in block.markers and program not in run:
                found.append(f"{where}: {command!r} is not what {', '.join(block.markers)} runs")
    return found


def _problems_of(marker: str, document: str) -> list[str]:
    if marker.startswith("make "):
        target = marker.removeprefix("make ")
        return [] if target in make_targets() else [f"the Makefile has no target {target!r}"]
    path, _, function = marker.partition("::")
    if not path.startswith("tests/") or not (ROOT / path).is_file():
        return [f"there is no {path}"]
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if function and function not in functions:
        return [f"{path} has no function {function}"]
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if "commands_of" not in called or not any(text in document for text in texts if text.endswith(".md")):
        return [f"{path} does not read its commands out of {document}"]
    return [] if marker in texts or not function else [f"{path} does not ask for the commands under {marker}"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document}:{block.line}")
def test_every_command_of_a_document_is_run_by_what_stands_above_it(block):
    assert not problems(block)


def test_documents_have_commands():
    assert {block.document for block in BLOCKS} >= {"README.md", "docs/deploy.md"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\nmake test\n```", "nothing runs these commands"),
        ("```\nray job list\n```", "nothing runs these commands"),
        ("<!-- runs: make test -->\n\nOther words.\n\n```bash\nmake test\n```", "nothing runs these commands"),
        ("<!-- runs: make nothing -->\n```bash\nmake nothing\n```", "no target 'nothing'"),
        ("<!-- runs: make test -->\n```bash\nmake demo\n```", "'make demo' is not what make test runs"),
        ("<!-- runs: tests/test_nothing.py -->\n```bash\nls\n```", "there is no tests/test_nothing.py"),
        ("<!-- runs: tests/algorithms/test_grpo.py -->\n```bash\nls\n```", "does not read its commands"),
        ("<!-- runs: tests/algorithms/test_grpo.py::nothing -->\n```bash\nls\n```", "no function nothing"),
    ],
)
def test_commands_that_nothing_runs_are_found(text, problem):
    (block,) = find_blocks(text, "README.md")
    assert any(problem in line for line in problems(block))


def test_commands_are_read_as_a_shell_would_read_them():
    text = (
        '<!-- runs: make a, make b -->\n```bash\n# a word\n$ ls \\\n   -l  # all\n\necho "#1"\n```\n```toml\na = 1\n```'
    )
    assert find_blocks(text, "x.md") == [Block("x.md", 2, ("make a", "make b"), ("ls -l", 'echo "#1"'))]
