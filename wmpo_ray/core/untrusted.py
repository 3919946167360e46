"""What comes from outside: a file's claims are compared with what is there before memory is taken for them.

An uncompressed format cannot hold more than its file, so bounds come from the size on the disk where they can. All
functions raise `UserError`, which names the file, the value and the bound. Nothing here unpickles or runs anything.
"""

from __future__ import annotations

import json
import math
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MAX_SETTINGS_BYTES = 2**20  # of a file that a person could have written
MAX_JSON_BYTES = 256 * 2**20  # of one that a long run writes
MAX_LINE_BYTES = 2**20

PIECE_BYTES = 2**20
# Of reading an array: RuntimeError if encrypted or packed in an unknown way; the second line is of numpy's own parser.
BAD_ARCHIVE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) + (
    (MemoryError, SyntaxError, TypeError, tokenize.TokenError)
)
# What a network's constructor raises over settings that make no sense.
BAD_SETTINGS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
# With these in its config.json a model folder has its loader fetch or import something.
FORBIDDEN_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "trust_remote_code",
)

Model = TypeVar("Model", bound=BaseModel)


# -- text --------------------------------------------------------------------------------------------------------


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole content of a regular file of at most `max_bytes`."""
    try:
        with open(_regular(path, max_bytes), "rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_lines(path: Path, max_bytes: int = MAX_JSON_BYTES, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a regular file with their ends, one at a time."""
    with open(_regular(path, max_bytes), "rb") as file:
        for number in range(1, max_bytes):
            line = file.readline(max_line_bytes + 1)
            if not line:
                return
            if len(line) > max_line_bytes:
                raise UserError(f"{path}, line {number}: longer than the {max_line_bytes} bytes of any line of ours")
            yield line


def parse_json(data: bytes | str, where: str) -> Any:
    """What JSON text says; `where` is named if it is none, is nested too deeply or has a number of too many digits."""
    try:
        return json.loads(data)
    except RecursionError:
        raise UserError(f"{where} is damaged: its JSON is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where} is damaged: {error}") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    return parse_json(read_bytes(path, max_bytes), str(path))


def read_settings(path: Path, kind: type[Model]) -> Model:
    """A file of settings, checked by a pydantic model; the first wrong key is named with its value."""
    try:
        return kind.model_validate_json(read_bytes(path, MAX_SETTINGS_BYTES), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"{key} = {shown(first['input'])}: {first['msg']}" if key else first["msg"]
        raise UserError(f"{path} is damaged: {what}") from None


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name`, which `where` says, in a folder; refused if its text leads out of it."""
    parts = name.replace("\\", "/").split("/")
    if not all(parts) or ":" in name or "\0" in name or any(part in (".", "..") for part in parts):
        raise UserError(f"{where} names {shown(name)}: only a name inside {folder} is allowed there")
    return folder.joinpath(*parts)


def _regular(path: Path, max_bytes: int | None) -> Path:
    """A pipe or a device would never end."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} is no regular file")
    if max_bytes is not None and facts.st_size > max_bytes:
        raise UserError(f"{path} has {facts.st_size} bytes, more than the {max_bytes} that are read of such a file")
    return path


# -- arrays ------------------------------------------------------------------------------------------------------


def load_npz(path: Path, names: Sequence[str], max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of these names in an npz archive; `max_bytes` bounds the file and what it unpacks to."""
    with _archive(path, max_bytes) as archive:
        entries = {}
        for name in names:
            found = [entry for entry in archive.infolist() if entry.filename == f"{name}.npy"]
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


def _archive(path: Path, max_bytes: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_regular(path, max_bytes))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no npz archive, or only a part of one ({error})") from error


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> np.ndarray:
    import numpy as np

    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"{where} has format {version}; known are 1.0 and 2.0")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        if dtype.kind not in "biufU":
            raise UserError(f"{where} is of dtype {dtype}; only numbers, booleans and text are read")
        claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if claimed != held or any(size < 0 for size in shape):
            raise UserError(f"{where} claims to be {dtype} {shape}, {claimed} bytes, and holds {held}")
        array = np.empty(shape, dtype, order="F" if is_fortran else "C")
        target = array.reshape(-1, order="A").view(np.uint8)
        done = 0
        while piece := file.read(PIECE_BYTES):  # the archive gives no more than held; its end compares the checksum
            target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        if done != held:
            raise UserError(f"{where} ends after {done} of {held} bytes")
        return array


# -- tensors -----------------------------------------------------------------------------------------------------


class TensorSpec(NamedTuple):
    dtype: str  # safetensors' name for it, such as "F32"
    shape: tuple[int, ...]

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def tensor_specs(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes in a safetensors file; the library compares them with the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_regular(path, None), "numpy") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            return {name: TensorSpec(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def check_tensors(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those expected, by name, dtype and shape."""
    if found.keys() != expected.keys():
        strange, absent = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
        raise UserError(f"{where} holds other tensors than this run: {_differences(absent, strange)}")
    for name, tensor in expected.items():
        saved = found[name]
        if (saved.dtype, saved.shape) != (tensor.dtype, tensor.shape):
            raise UserError(
                f"{where}: {name} is {saved.dtype} {tuple(saved.shape)}, in this run {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def _differences(absent: Sequence[str], strange: Sequence[str]) -> str:
    told = [f"without {shown(absent[0])}" if absent else "", f"with {shown(strange[0])}" if strange else ""]
    return " and ".join(part for part in told if part)


# -- models ------------------------------------------------------------------------------------------------------


class NetworkSettings(BaseModel):
    """What is checked of a config.json; the other keys are the library's, but none that fetches or imports."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    torch_dtype: Literal["float32", "float16", "bfloat16"] | None = None  # the older name

    @property
    def num_layers_in_all(self) -> int:
        """A lower bound of the number of weight tensors."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _refuse_loading_elsewhere(self) -> Self:
        found = [key for key in FORBIDDEN_KEYS if (self.model_extra or {}).get(key)]
        if found:
            raise ValueError(f"the key {found[0]!r} is not allowed: a model folder holds weights, and runs nothing")
        return self


def check_network(
    folder: Path,
    stem: str,
    kind: type[NetworkSettings],
    build: Callable[[dict[str, Any]], nn.Module],
    renamed: Callable[[str], str] = lambda name: name,
) -> None:
    """Refuse a diffusers or transformers folder whose network is not the one that its weights are for.

    `<folder>/config.json` holds the sizes and `<folder>/<stem>.safetensors` (or the parts in its index) the weights.
    `build` makes the network from the settings; it is called where tensors take no memory. `renamed` gives the other
    name that a tensor of the network may have in the file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of a model")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter_config.json, which names another model; give the merged model")
    path = folder / "config.json"
    settings = read_settings(path, kind)
    specs = {name: spec for part in _weight_files(folder, stem) for name, spec in tensor_specs(part).items()}
    if settings.num_layers_in_all > len(specs):
        raise UserError(f"{path} tells of {settings.num_layers_in_all} layers; the weights are {len(specs)} tensors")
    for name, tensor in _sizes(path, build, read_json(path, MAX_SETTINGS_BYTES)).items():
        found = specs.get(name) or specs.get(renamed(name))
        if found is None:
            raise UserError(f"{folder}: the weights lack {name!r}, which config.json asks for")
        if found.shape != tuple(tensor.shape) or found.is_floating != tensor.is_floating_point():
            raise UserError(
                f"{folder}: {name} is {found.dtype} {found.shape} in the weights, "
                f"config.json asks for {tensor.dtype} {tuple(tensor.shape)}"
            )


def check_finite(network: nn.Module, folder: Path) -> None:
    """Refuse weights that are not numbers: everything computed with them would be lost."""
    import torch

    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{folder}: {name} holds values that are not finite; the training that wrote it went wrong")


def _weight_files(folder: Path, stem: str) -> list[Path]:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists() == index.exists():
        raise UserError(f"{folder}: exactly one of {single.name} and {index.name} must be there")
    if single.exists():
        return [single]
    content = read_json(index, MAX_JSON_BYTES)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UserError(f"{index} is damaged: it lists no files")
    names = sorted(set(parts.values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise UserError(f"{index} names {shown(name)}: only safetensors files are loaded")
    return [inside(folder, name, str(index)) for name in names]


def _sizes(path: Path, build: Callable[[dict[str, Any]], nn.Module], settings: dict[str, Any]) -> dict[str, Tensor]:
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build(settings).state_dict()
    except BAD_SETTINGS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no network can be made from these settings: {reason}") from error
