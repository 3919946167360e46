"""Another Python with lerobot and robomimic, and what it answers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).parent / "foreign_readers.py"
DEFAULT = Path(__file__).parents[1] / ".venv-exchange" / "bin" / "python"


def foreign_python(given: Path | None) -> Path:
    """The one to use. Raises SystemExit with a line on how to make one, where it is missing."""
    path = given or DEFAULT
    if not path.exists():
        raise SystemExit(f"{path} is missing: make it with `make exchange-env`, or name another with --python")
    return path


def ask(python: Path, *arguments: object) -> Any:
    """The answer to one question. Raises RuntimeError with the last lines of what went wrong."""
    done = subprocess.run(_command(python, arguments), capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
    return _answer(done.stdout.splitlines())


class Reader:
    """A process of it that reads windows, as long as it is asked for."""

    def __init__(self, python: Path, package: str, path: Path, key: str, log: Path):
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                _command(python, ("windows", package, path, key)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(),
            )
        self._log = log

    def windows_per_s(self, mode: str, seconds: float, clock: str = "wall") -> float:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(mode, seconds, clock, file=stdin, flush=True)
        while line := stdout.readline():
            if line.startswith('{"answer"'):
                return float(json.loads(line)["answer"])
        raise RuntimeError(f"the reader ended: {self._log.read_text()[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def _command(python: Path, arguments: tuple[object, ...]) -> list[str]:
    return [str(python), str(SCRIPT), *map(str, arguments)]


def _environment() -> dict[str, str]:
    """Without PYTHONPATH: it must not find this program."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _answer(lines: list[str]) -> Any:
    return json.loads(next(line for line in reversed(lines) if line.startswith('{"answer"')))["answer"]
