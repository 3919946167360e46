"""Files that torch.save wrote: what tensors they hold, known before anything of them is loaded or run.

Published checkpoints come as `.pt`, `.pth` or `.bin`: a zip archive of raw storages and a pickle that names them. The
pickle is read opcode by opcode first; one that asks for anything but tensors is refused, and so is one whose tensors
claim more than the archive holds. Only then `torch.load(weights_only=True, mmap=True)` maps the storages.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wmpo_ray.config_section import shown
from wmpo_ray.errors import UserError
from wmpo_ray.untrusted import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".bin")
MAX_PICKLE_BYTES = 64 * 2**20  # of names and shapes; the weights lie beside it
WRAPPERS = ("state_dict", "model", "module", "ema")  # keys under which training scripts keep the weights
STORAGES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
# All that torch.save needs for a dictionary of tensors. None of them can import or call by a name that is computed.
OPCODES = frozenset(
    "PROTO STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE GLOBAL "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS REDUCE BUILD BINPERSID".split()
)
BAD_ARCHIVE = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
BAD_PICKLE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)


class _Storage(NamedTuple):
    dtype: str
    num_elements: int
    item_bytes: int


def pickled_specs(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes in a file of torch.save; raises UserError for anything else, and runs nothing."""
    return _read(path)[1]


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of such a file by name, mapped from the disk. Raises UserError as `pickled_specs` does."""
    import torch

    wrapper, specs = _read(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, *BAD_PICKLE) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    tensors = content[wrapper] if wrapper else content
    for name, spec in specs.items():
        if tuple(tensors[name].shape) != spec.shape:
            raise UserError(f"{path} is damaged: {name} is {tuple(tensors[name].shape)}, its list says {spec.shape}")
    return {name: tensors[name].detach() for name in specs}


def _read(path: Path) -> tuple[str | None, dict[str, TensorSpec]]:
    """The key that the weights are wrapped in, if any, and their specs."""
    if not path.is_file():
        raise UserError(f"{path} is missing, or no regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            (listed,) = [name for name in entries if name.endswith("/data.pkl")] or [None]
            if listed is None or entries[listed].file_size > MAX_PICKLE_BYTES:
                raise UserError(f"{path} holds no list of tensors, or one of more than {MAX_PICKLE_BYTES} bytes")
            data = archive.read(entries[listed])
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except BAD_ARCHIVE as error:
        raise UserError(
            f"{path} is no file of torch.save, or only a part of one ({error}); files older than torch 1.6 must be "
            "saved again"
        ) from error
    sizes = {name: entry.file_size for name, entry in entries.items()}
    _check_opcodes(data, path)
    try:
        content = _SpecReader(data, listed.removesuffix("data.pkl") + "data/", sizes, path).load()
    except BAD_PICKLE as error:
        raise UserError(f"{path} is damaged: its list of tensors cannot be read ({error})") from error
    return _state_dict(content, path)


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
    if len(entries) != len(archive.infolist()) or packed:
        raise UserError(f"{path} is damaged: torch.save writes every entry once and uncompressed")
    return entries


def _check_opcodes(data: bytes, path: Path) -> None:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in OPCODES:
                raise UserError(f"{path} holds code ({opcode.name}), not only tensors; it was not run")
            if opcode.name == "GLOBAL" and tuple(argument.split(" ")) not in _SpecReader.ALLOWED:
                raise UserError(f"{path} asks for {shown(argument)}, which is no tensor; it was not run")
            if opcode.name == "LONG_BINPUT" and argument > len(data):
                raise UserError(f"{path} is damaged: its list of tensors has a place {argument}")
    except BAD_PICKLE as error:
        raise UserError(f"{path} is damaged: its list of tensors cannot be read ({error})") from error


class _SpecReader(pickle.Unpickler):
    """Gives a TensorSpec where torch would make a tensor."""

    def __init__(self, data: bytes, prefix: str, sizes: Mapping[str, int], path: Path):
        super().__init__(io.BytesIO(data))
        self.prefix, self.sizes, self.path = prefix, sizes, path

    def find_class(self, module: str, name: str) -> Any:
        return self.ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, (dtype, item_bytes), key, _, num_elements = pid
        held = self.sizes[f"{self.prefix}{key}"]
        if num_elements * item_bytes != held:
            raise UserError(f"{self.path}: storage {key} claims {num_elements * item_bytes} bytes and holds {held}")
        return _Storage(dtype, num_elements, item_bytes)

    @staticmethod
    def tensor(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> TensorSpec:
        sizes = [offset, *shape, *stride]
        if len(shape) != len(stride) or any(not isinstance(size, int) or size < 0 for size in sizes):
            raise ValueError(f"a tensor of shape {shape} and stride {stride}")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        elements = math.prod(shape)
        if elements and (last >= storage.num_elements or elements > storage.num_elements):
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.num_elements} elements")
        return TensorSpec(storage.dtype, tuple(shape))

    @staticmethod
    def parameter(data: TensorSpec, *_: Any) -> TensorSpec:
        return data

    ALLOWED: dict[tuple[str, ...], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor.__func__,
        ("torch._utils", "_rebuild_parameter"): parameter.__func__,
        **{("torch", name): kind for name, kind in STORAGES.items()},
    }


def _state_dict(content: Any, path: Path) -> tuple[str | None, dict[str, TensorSpec]]:
    wrapper = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    tensors = content[wrapper] if wrapper else content
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds no weights: a dictionary of names and tensors is needed")
    for name, spec in tensors.items():
        if not isinstance(name, str) or not isinstance(spec, TensorSpec):
            raise UserError(f"{path} holds something that is no tensor under {shown(name)}; save the weights alone")
    return wrapper, dict(tensors)
