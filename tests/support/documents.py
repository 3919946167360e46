"""The commands that the documents show, so that tests run what a reader types and not a copy of it.

Above each block of commands stands a comment that only authors see: `<!-- runs: MARKER, ... -->`, where a marker is
`make TARGET` or a test, `tests/FILE.py` or `tests/FILE.py::FUNCTION`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LANGUAGES = ("bash", "sh", "shell", "console", "python")
PROGRAMS = [
    "bash",
    "cd",
    "curl",
    "docker",
    "export",
    "git",
    "helm",
    "kubectl",
    "make",
    "pip",
    "pytest",
    "python",
    "python3",
    "ray",
    "sbatch",
    "scancel",
    "scontrol",
    "srun",
    "wmpo",
]
MARKER = re.compile(r"<!-- runs: (.+?) -->")
FENCE = re.compile(r"^(```+)\s*(\w*)\s*$")


class Block(NamedTuple):
    document: str  # relative to the repository
    line: int  # of the opening fence
    markers: tuple[str, ...]
    commands: tuple[str, ...]  # continued lines joined, comments and prompts left out


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_blocks(document: Path) -> list[Block]:
    """Every fenced block of a document that holds commands, marked or not."""
    return find_blocks(document.read_text(encoding="utf-8"), str(document.relative_to(ROOT)))


def find_blocks(text: str, name: str) -> list[Block]:
    """As `command_blocks`, of a document's text."""
    found: list[Block] = []
    opening: tuple[int, str] | None = None
    body: list[str] = []
    markers: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line.strip())
        if opening is not None:
            if fence and not fence[2]:
                commands = _commands(body)
                if opening[1] in LANGUAGES or (not opening[1] and _looks_like_commands(commands)):
                    found.append(Block(name, opening[0], markers, commands))
                opening, markers = None, ()
            else:
                body.append(line)
        elif fence:
            opening, body = (number, fence[2]), []
        elif match := MARKER.search(line):
            markers = tuple(marker.strip() for marker in match[1].split(","))
        elif line.strip():
            markers = ()  # a marker belongs to the block right below it
    return found


def commands_of(document: Path, marker: str) -> list[str]:
    """The commands of every block under this marker, in their order. Raises LookupError if there is none."""
    commands = [c for block in command_blocks(document) if marker in block.markers for c in block.commands]
    if not commands:
        raise LookupError(f"{document.relative_to(ROOT)} has no commands under <!-- runs: {marker} -->")
    return commands


def _commands(lines: list[str]) -> tuple[str, ...]:
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    commands = (re.sub(r"(^|\s+)#\s.*$", "", line.strip().removeprefix("$ ")) for line in joined.splitlines())
    return tuple(command for command in commands if command)


def _looks_like_commands(commands: tuple[str, ...]) -> bool:
    return bool(commands) and commands[0].split()[0] in PROGRAMS
