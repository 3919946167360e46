"""Files that torch.save wrote, read without unpickling: published checkpoints come as `.pt`, `.pth` and `.bin`.

Such a file is a zip archive of raw storages and a pickle that says which tensors lie where in them. The few opcodes
that this takes are read here as a list of facts; a file with any other opcode or name is refused, and so is one whose
tensors claim more than the archive holds. The storages are then mapped from the disk. Nothing of the file is run.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".bin")
MAX_LIST_BYTES = 64 * 2**20  # of names and shapes; the weights lie beside it
WRAPPERS = ("state_dict", "model", "module", "ema")  # keys under which training scripts keep the weights
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: the lengths of its name and of its extra field follow 26 bytes
ORDERED_DICT, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
STORAGES = {  # safetensors' name, torch's name, bytes
    "torch DoubleStorage": ("F64", "float64", 8),
    "torch FloatStorage": ("F32", "float32", 4),
    "torch HalfStorage": ("F16", "float16", 2),
    "torch BFloat16Storage": ("BF16", "bfloat16", 2),
    "torch LongStorage": ("I64", "int64", 8),
    "torch IntStorage": ("I32", "int32", 4),
    "torch ShortStorage": ("I16", "int16", 2),
    "torch CharStorage": ("I8", "int8", 1),
    "torch ByteStorage": ("U8", "uint8", 1),
    "torch BoolStorage": ("BOOL", "bool", 1),
}
BAD_ARCHIVE = (OSError, EOFError, RuntimeError, NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error)
BAD_LIST = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class _Name(NamedTuple):
    """A class or function that the list names."""

    text: str


class _Storage(NamedTuple):
    entry: str
    kind: str
    num_elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(STORAGES[self.storage.kind][0], self.shape)


def pickled_specs(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes in a file of torch.save. Raises UserError for anything else."""
    return {name: tensor.spec for name, tensor in _read(path)[0].items()}


def read_pickled(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of such a file, each mapped from the disk for as long as it is used.

    Raises UserError as `pickled_specs` does.
    """
    import numpy as np
    import torch

    tensors, starts = _read(path)
    for name in names:
        tensor = tensors[name]
        _, dtype, item_bytes = STORAGES[tensor.storage.kind]
        num_bytes = tensor.storage.num_elements * item_bytes
        if not num_bytes:
            yield name, torch.zeros(tensor.shape, dtype=getattr(torch, dtype))
            continue
        start = starts[tensor.storage.entry]
        raw = np.memmap(path, np.uint8, "c", start, (num_bytes,))
        # torch.save aligns its storages; another writer may not.
        typed = torch.from_numpy(raw if start % item_bytes == 0 else raw.copy()).view(getattr(torch, dtype))
        yield name, typed.as_strided(tensor.shape, tensor.stride, tensor.offset)


# -- the archive -------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, _Tensor], dict[str, int]]:
    """The tensors by name, and where in the file each entry of the archive begins."""
    if not path.is_file():
        raise UserError(f"{path} is missing, or no regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            lists = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(lists) != 1 or lists[0].file_size > MAX_LIST_BYTES:
                raise UserError(f"{path} holds no list of tensors, or one of more than {MAX_LIST_BYTES} bytes")
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or len({entry.filename for entry in entries}) != len(entries):
                raise UserError(f"{path} is damaged: torch.save writes every entry once and uncompressed")
            starts = _starts(path, entries)
            data = archive.read(lists[0])
    except (*BAD_ARCHIVE, ValueError) as error:
        raise UserError(
            f"{path} is no file of torch.save, or only a part of one ({error}); one older than torch 1.6 must be saved "
            "again"
        ) from error
    folder = lists[0].filename.removesuffix("data.pkl")
    sizes = {entry.filename.removeprefix(f"{folder}data/"): entry.file_size for entry in entries}
    try:
        tensors = _state_dict(_Facts(path, sizes).read(data), path)
    except BAD_LIST as error:
        raise UserError(f"{path} is damaged: its list of tensors cannot be read ({error})") from error
    return tensors, {entry.filename.removeprefix(f"{folder}data/"): starts[entry.filename] for entry in entries}


def _starts(path: Path, entries: list[zipfile.ZipInfo]) -> dict[str, int]:
    starts, file_bytes = {}, path.stat().st_size
    with open(path, "rb") as file:
        for entry in entries:
            file.seek(entry.header_offset)
            name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
            if start + entry.file_size > file_bytes:
                raise UserError(f"{path} is damaged: {shown(entry.filename)} goes beyond its end")
            starts[entry.filename] = start
    return starts


# -- the list of tensors -----------------------------------------------------------------------------------------


class _Facts:
    """Reads the opcodes of a dictionary of tensors; `sizes` are the bytes of the storages."""

    def __init__(self, path: Path, sizes: Mapping[str, int]):
        self.path, self.sizes = path, sizes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if not (self._plain(opcode.name, argument) or self._container(opcode.name)):
                raise UserError(f"{self.path} holds code ({opcode.name}) besides tensors; it was not run")
        raise ValueError("it has no end")

    def _plain(self, opcode: str, argument: Any) -> bool:
        match opcode:
            case "PROTO":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                if argument not in (ORDERED_DICT, TENSOR, PARAMETER, *STORAGES):
                    raise UserError(f"{self.path} asks for {shown(argument)}, which is no tensor; it was not run")
                self.stack.append(_Name(argument))
            case "BINPERSID":
                self.stack.append(self._storage(self.stack.pop()))
            case _:
                return False
        return True

    def _container(self, opcode: str) -> bool:
        match opcode:
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                self.stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode])
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._since(opcode, "TUPLE")))
            case "APPEND" | "APPENDS":
                items = self._since("1" if opcode == "APPEND" else "", "")
                self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._since("2" if opcode == "SETITEM" else "", "")
                self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "REDUCE":
                arguments = self.stack.pop()
                self.stack.append(self._made(self.stack.pop(), arguments))
            case "BUILD":
                self.stack.pop()  # attributes beside the items, such as a state dict's version numbers
            case _:
                return False
        return True

    def _since(self, opcode: str, stem: str) -> list[Any]:
        """Take as many items off the stack as the opcode's number says, or all since the last mark."""
        number = opcode.removeprefix(stem)
        start = len(self.stack) - int(number) if number else self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _storage(self, pid: Any) -> _Storage:
        _, name, entry, _, num_elements = pid
        claimed, held = num_elements * STORAGES[name.text][2], self.sizes[entry]
        if claimed != held:
            raise UserError(f"{self.path}: storage {shown(entry)} claims {claimed} bytes and holds {held}")
        return _Storage(entry, name.text, num_elements)

    def _made(self, name: _Name, arguments: tuple[Any, ...]) -> Any:
        if name.text == ORDERED_DICT:
            return dict(*arguments)
        if name.text == PARAMETER:
            return arguments[0]
        if name.text != TENSOR:
            raise ValueError(f"{name.text} is called")
        storage, offset, shape, stride = arguments[:4]
        sizes = [offset, *shape, *stride]
        if len(shape) != len(stride) or any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError(f"a tensor of shape {shape} and stride {stride}")
        elements = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if elements and max(last, elements - 1) >= storage.num_elements:
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.num_elements} elements")
        return _Tensor(storage, offset, shape, stride)


def _state_dict(content: Any, path: Path) -> dict[str, _Tensor]:
    wrapper = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    tensors = content[wrapper] if wrapper else content
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds no weights: a dictionary of names and tensors is needed")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise UserError(f"{path} holds something that is no tensor under {shown(name)}; save the weights alone")
    return tensors
