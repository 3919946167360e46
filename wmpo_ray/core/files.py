"""Atomic writes: after any failure a file or folder has either its old or its new content.

Everything is written under a temporary name beside its place, flushed to the disk, then renamed. A kill leaves at most
a file called `<name>.tmp-...`, which `remove_leftovers` clears away before the next run writes.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wmpo_ray.core.errors import UserError

_LEFTOVER = re.compile(r"(?P<name>.+)\.tmp-(?P<kind>new|old)-\d+-[0-9a-f]{8}")


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`; text is UTF-8. On any failure the old content stays.

    Raises `UserError` on a full disk.
    """
    with atomic_file(path) as partial, open(partial, "wb", buffering=0) as file:
        write_all(file.fileno(), data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it takes the place of `path` if the block succeeds and goes if it fails."""
    partial = _sibling(path, "new")
    try:
        with explain_full_disk(path):
            yield partial
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the place of `path` if the block succeeds and goes if it fails.

    A folder that already stands there is renamed aside first and deleted last. If the process is killed between the
    two renames, `remove_leftovers` puts the old one back.
    """
    partial, aside = _sibling(path, "new"), _sibling(path, "old")
    try:
        with explain_full_disk(path):
            partial.mkdir()
            yield partial
            for folder, _, names in os.walk(partial, topdown=False):
                for name in names:
                    _share_as(partial, Path(folder, name))
                    flush(Path(folder, name))
                flush(Path(folder))
            if path.exists():
                os.rename(path, aside)
            os.rename(partial, path)
            flush(path.parent)
    finally:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _share_as(folder: Path, path: Path) -> None:
    """Let those read weights who may read their folder: safetensors writes them for their owner alone."""
    if path.suffix == ".safetensors":
        path.chmod(folder.stat().st_mode & 0o666)  # the folder was made with the umask


def remove_directory(path: Path) -> None:
    """Delete a folder so that a kill halfway never leaves half of it under its name."""
    doomed = _sibling(path, "new")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete leftovers of killed writers directly in `folder`; returns the names.

    Only the one process that writes to the folder may call this.
    """
    found = [(entry, match) for entry in folder.iterdir() if (match := _LEFTOVER.fullmatch(entry.name))]
    for entry, match in sorted(found, key=lambda pair: pair[0].stat().st_ctime, reverse=True):
        target = folder / match["name"]
        if match["kind"] == "old" and not target.exists():
            os.rename(entry, target)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return sorted(entry.name for entry, _ in found)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is an unfinished one of ours."""
    return _LEFTOVER.fullmatch(name) is not None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(path: Path) -> str:
    """Hexadecimal SHA-256 of the names and contents of all files in a folder and its sub-folders."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_states(path: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, time in ns, bytes) of a file, or of every file in a folder: what changes if they are written again."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def write_all(descriptor: int, data: bytes) -> None:
    """Write and flush to the disk; `os.write` alone may stop early."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk (or quota) inside the block into a `UserError` that names `path` and the space that is left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free_mib = shutil.disk_usage(existing).free / 2**20
        raise UserError(
            f"{path}: the disk is full ({free_mib:.1f} MiB free); the previous content is intact. "
            "Free some space or choose another folder with --out"
        ) from error


def json_clean(value: Any) -> Any:
    """`value` in JSON's types: numpy scalars and arrays converted, NaN and infinities as None.

    Raises `TypeError` for anything else that JSON has no word for.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): json_clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_clean(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a JSON file")


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.tmp-{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def flush(path: Path) -> None:
    """Have the disk hold what is in a file, or which names are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
