"""HDF5 files from outside: their claims are compared with what is there before memory is taken for them.

Refused are links of any kind but plain ones (they may lead out of the file), data that stands in other files, filters
that HDF5 would load a library for, and values that are objects. All functions raise UserError.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import regular_file

if TYPE_CHECKING:
    import h5py

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # those that h5py brings with it
MAX_RATIO = 1032  # of gzip, and no data compress better
CHUNK_SLACK = 2**20  # bytes by which a dataset may be smaller than its chunks
MAX_CHUNK_BYTES = 2**28
MAX_TEXT_BYTES = 2**20
# What h5py raises for a file that is damaged.
BAD_FILE = (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError)


def hdf5_library() -> Any:
    """The module h5py. Raises ConfigError where it is not installed."""
    try:
        import h5py
    except ImportError:
        raise ConfigError('HDF5 files need the package h5py: pip install "wmpo-ray[hdf5]"') from None
    return h5py


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises inside the block into a UserError that names `path`."""
    try:
        yield
    except BAD_FILE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or no HDF5 file: {reason[:300]}") from error


# Damage can keep HDF5 busy for ever, in a call that no signal interrupts; so another process looks at the headers first.
HEADER_SECONDS = 60  # of a processor
LOOK_AT_HEADERS = """
import contextlib, resource, sys
import h5py
path, seconds, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
def look(name, node):
    for key in node.attrs:
        with contextlib.suppress(Exception):
            if node.attrs.get_id(key).get_storage_size() <= most:
                node.attrs[key]
with contextlib.suppress(Exception), h5py.File(path, "r", locking=False) as file:
    look("/", file)
    file.visititems(look)
"""


def check_headers(path: Path) -> None:
    """Raises UserError for a file whose headers HDF5 does not come to an end with."""
    hdf5_library()
    command = [sys.executable, "-c", LOOK_AT_HEADERS, str(path), str(HEADER_SECONDS), str(MAX_TEXT_BYTES)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode < 0:  # by a signal: out of time, or worse
        name = signal.Signals(-done.returncode).name
        raise UserError(f"{path} is damaged: HDF5 does not come to an end with its headers ({name})")


def open_hdf5(path: Path) -> h5py.File:
    library = hdf5_library()
    with explained(regular_file(path, None)):
        return library.File(path, "r", locking=False)


def child(path: Path, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What stands in a group under a plain name; None where there is nothing."""
    library = hdf5_library()
    link = group.get(name, getlink=True)
    if link is None:
        return None
    where = f"{path}, {group.name}/{name}".replace("//", "/")
    if not isinstance(link, library.HardLink):
        kind = type(link).__name__
        raise UserError(f"{where} is a {kind} to {shown(link.path)}; only data that stand in the file are read")
    found = group[name]
    if not isinstance(found, library.Group | library.Dataset):
        raise UserError(f"{where} is neither a group nor a dataset")
    return found


def child_group(path: Path, group: h5py.Group, name: str) -> h5py.Group | None:
    found = child(path, group, name)
    if found is not None and not isinstance(found, hdf5_library().Group):
        raise UserError(f"{path}, {found.name} is no group")
    return found


def child_dataset(path: Path, group: h5py.Group, name: str, kinds: str, num_axes: int) -> h5py.Dataset | None:
    """A dataset of plain numbers whose dtype is among `kinds`, with `num_axes` axes, as large as what is stored of it."""
    found = child(path, group, name)
    if found is None:
        return None
    where = f"{path}, {found.name}"
    if not isinstance(found, hdf5_library().Dataset):
        raise UserError(f"{where} is no dataset")
    _check_storage(where, found)
    if found.shape is None or len(found.shape) != num_axes or found.dtype.kind not in kinds or found.dtype.itemsize > 8:
        raise UserError(f"{where} is {found.dtype} {found.shape}; {num_axes} axes of dtype kind {kinds!r} are read")
    return found


def _check_storage(where: str, dataset: h5py.Dataset) -> None:
    """Refuse data of other files, filters of other libraries, and shapes that nothing stored stands behind."""
    library = hdf5_library()
    how = dataset.id.get_create_plist()
    if how.get_external_count() or how.get_layout() == library.h5d.VIRTUAL:
        raise UserError(f"{where}: its data stand in another file; only data that stand in the file are read")
    filters = [how.get_filter(i)[0] for i in range(how.get_nfilters())]
    if unknown := [number for number in filters if number not in FILTERS]:
        raise UserError(f"{where}: HDF5 filter {unknown[0]}; read are {', '.join(FILTERS.values())}")
    if dataset.dtype.hasobject or dataset.dtype.subdtype:
        raise UserError(f"{where} is of dtype {dataset.dtype}; only plain numbers are read")
    item = dataset.dtype.itemsize
    claimed, stored = math.prod(dataset.shape or ()) * item, dataset.id.get_storage_size()
    if dataset.chunks and math.prod(dataset.chunks) * item > MAX_CHUNK_BYTES:
        raise UserError(f"{where}: chunks of {dataset.chunks}, more than the {MAX_CHUNK_BYTES} bytes of any")
    allowed = stored * (MAX_RATIO if filters else 1)
    if claimed > allowed:
        raise UserError(f"{where} claims {dataset.shape}, {claimed} bytes, of which {stored} are stored")


def text_attribute(path: Path, node: h5py.Group, name: str) -> str:
    """A text attribute; "" where there is none."""
    found = _attribute(path, node, name)
    if found is None:
        return ""
    if isinstance(found, bytes):
        found = found.decode()
    if not isinstance(found, str):
        raise UserError(f"{path}, {node.name}: the attribute {name} is no text")
    found.encode()  # h5py lets bytes through that are no Unicode
    return found


def number_attribute(path: Path, node: h5py.Group, name: str) -> int | None:
    """A whole number or a flag; None where there is none."""
    found = _attribute(path, node, name)
    if found is None:
        return None
    if not isinstance(found, int | np.integer | np.bool_):
        raise UserError(f"{path}, {node.name}: the attribute {name} is no whole number")
    return int(found)


def _attribute(path: Path, node: h5py.Group, name: str) -> Any:
    if name not in node.attrs:
        return None
    about = node.attrs.get_id(name)
    if about.shape != () or about.get_storage_size() > MAX_TEXT_BYTES:
        size = about.get_storage_size()
        raise UserError(f"{path}, {node.name}: the attribute {name} has shape {about.shape} and {size} bytes")
    found = node.attrs[name]
    if isinstance(found, str | bytes) and len(found) > MAX_TEXT_BYTES:
        raise UserError(f"{path}, {node.name}: the attribute {name} is longer than {MAX_TEXT_BYTES} bytes")
    return found
