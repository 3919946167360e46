"""Arrays of npz archives from outside: what they claim is compared with what is there before memory is taken for it."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import regular_file

if TYPE_CHECKING:
    import numpy as np

PIECE_BYTES = 2**20
# Of reading an array: RuntimeError if encrypted or packed in an unknown way; the second line is of numpy's own parser.
BAD_ARCHIVE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) + (
    (MemoryError, SyntaxError, TypeError, tokenize.TokenError)
)


def load_npz(path: Path, names: Sequence[str], max_bytes: int, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of these names in an npz archive; `max_bytes` bounds the file and what it unpacks to.

    Those of `optional` may be missing: files of earlier versions have not got them.
    """
    with _archive(path, max_bytes) as archive:
        entries = {}
        for name in (*names, *optional):
            found = [entry for entry in archive.infolist() if entry.filename == f"{name}.npy"]
            if not found and name in optional:
                continue
            if len(found) != 1:
                raise UserError(f"{path} holds {len(found)} arrays named {name!r} instead of 1")
            entries[name] = found[0]
        total = sum(entry.file_size for entry in entries.values())
        if total > max_bytes:
            raise UserError(f"{path} unpacks to {total} bytes, more than the {max_bytes} that are read of such a file")
        try:
            return {name: _read_array(archive, entry, f"{path}, array {name!r}") for name, entry in entries.items()}
        except BAD_ARCHIVE as error:
            raise UserError(f"{path} is not readable ({error})") from error


def load_npy(path: Path, max_bytes: int | None = None) -> np.ndarray:
    """The array of a file that holds one. Raises UserError where it is missing, damaged, or of more than `max_bytes`."""
    regular_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return read_npy(file, path.stat().st_size, str(path))
    except BAD_ARCHIVE as error:
        raise UserError(f"{path} is not readable ({error})") from error


def _archive(path: Path, max_bytes: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(regular_file(path, max_bytes))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no npz archive, or only a part of one ({error})") from error


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> np.ndarray:
    with archive.open(entry) as file:
        return read_npy(file, entry.file_size, where)


def npy_header(file: IO[bytes], num_bytes: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) of an array of `num_bytes` in all; the file then stands at its values.

    Raises UserError, which names `where`, for any dtype but numbers, booleans and text, and where the values are not as
    many as the shape says; one of `BAD_ARCHIVE` for a header that cannot be read.
    """
    import numpy as np

    begin = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{where} has format {version}; known are 1.0 and 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.kind not in "biufU":
        raise UserError(f"{where} is of dtype {dtype}; only numbers, booleans and text are read")
    claimed, held = math.prod(shape) * dtype.itemsize, num_bytes - (file.tell() - begin)
    if claimed != held or any(size < 0 for size in shape):
        raise UserError(f"{where} claims to be {dtype} {shape}, {claimed} bytes, and holds {held}")
    return shape, is_fortran, dtype


def read_npy(file: IO[bytes], num_bytes: int, where: str) -> np.ndarray:
    """An array as numpy stores it, of `num_bytes` in all; nothing is unpickled. Raises as `npy_header` does."""
    import numpy as np

    shape, is_fortran, dtype = npy_header(file, num_bytes, where)
    array = np.empty(shape, dtype, order="F" if is_fortran else "C")
    target = array.reshape(-1, order="A").view(np.uint8)
    done = 0
    while piece := file.read(min(PIECE_BYTES, len(target) - done) or 1):  # the end compares an archive's checksum
        if done + len(piece) > len(target):
            raise UserError(f"{where} holds more than the {len(target)} bytes of its values")
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if done != len(target):
        raise UserError(f"{where} ends after {done} of {len(target)} bytes")
    return array
