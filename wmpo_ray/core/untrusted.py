"""What comes from outside: a file's claims are compared with what is there before memory is taken for them.

All functions raise `UserError`, which names the file, the value and the bound. Nothing here unpickles or runs anything.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SETTINGS_BYTES = 2**20  # of a file that a person could have written
MAX_JSON_BYTES = 256 * 2**20  # of one that a long run writes
MAX_LINE_BYTES = 2**20

PIECE_ELEMENTS = 2**18  # elements of a tensor scanned at a time
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
        with open(regular_file(path, max_bytes), "rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_lines(path: Path, max_bytes: int = MAX_JSON_BYTES, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a regular file with their ends, one at a time."""
    with open(regular_file(path, max_bytes), "rb") as file:
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


def read_settings(path: Path, kind: type[Model], max_bytes: int = MAX_SETTINGS_BYTES) -> Model:
    """A file of settings, checked by a pydantic model; the first wrong key is named with its value."""
    try:
        return kind.model_validate_json(read_bytes(path, max_bytes), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        what = f"{key} = {shown(first['input'])}: {message}" if key else message
        raise UserError(f"{path} is damaged: {what}") from None


def refuse_unread(where: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a setting that is not among the `known` ones: it may change what the model computes.

    Names of libraries and files (`_class_name`), and what is off or empty, change nothing.
    """
    for key, value in settings.items():
        if key not in known and not key.startswith("_") and value is not None and value is not False and value != {}:
            raise UserError(
                f"{where}: {key} = {shown(value)} is not read here; remove it if the model does not need it"
            )


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name`, which `where` says, in a folder; refused if its text leads out of it."""
    parts = name.replace("\\", "/").split("/")
    if not all(parts) or ":" in name or "\0" in name or any(part in (".", "..") for part in parts):
        raise UserError(f"{where} names {shown(name)}: only a name inside {folder} is allowed there")
    return folder.joinpath(*parts)


def regular_file(path: Path, max_bytes: int | None) -> Path:
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


# -- tensors -----------------------------------------------------------------------------------------------------


FLOATS = ("F64", "F32", "F16", "BF16")


class TensorSpec(NamedTuple):
    dtype: str  # safetensors' name for it, such as "F32"
    shape: tuple[int, ...]

    @property
    def is_floating(self) -> bool:
        """Whether it is of a floating dtype that weights are computed with: float8 is none, and no complex one is."""
        return self.dtype in FLOATS


def tensor_specs(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes in a safetensors file; the library compares them with the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular_file(path, None), "numpy") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            return {name: TensorSpec(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def indexed_specs(
    index: Path,
    specs_of: Callable[[Path], dict[str, TensorSpec]] = tensor_specs,
    suffixes: tuple[str, ...] = (".safetensors",),
) -> dict[Path, dict[str, TensorSpec]]:
    """The files that an index of weights names, each with what it holds. Raises UserError where the two disagree."""
    content = read_json(index, MAX_JSON_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{index} is damaged: it lists no files")
    paths = _parts(index, set(places.values()), suffixes)
    parts = {path: specs_of(path) for path in paths.values()}
    for name, part in places.items():
        if name not in parts[paths[part]]:
            raise UserError(f"{index} and {part} disagree about {shown(name)}: the index has it there, where it is not")
    for part, path in paths.items():
        if unlisted := next((name for name in parts[path] if places.get(name) != part), None):
            raise UserError(f"{index} and {part} disagree about {shown(unlisted)}: the index does not list it there")
    return parts


def _parts(index: Path, names: set[str], suffixes: tuple[str, ...]) -> dict[str, Path]:
    paths = {}
    for part in sorted(names):
        path = inside(index.parent, part, str(index))
        if not part.endswith(suffixes):
            raise UserError(f"{index} names {shown(part)}: only {'/'.join(suffixes).replace('.', '')} files are loaded")
        if not path.is_file():
            raise UserError(f"{index} names {shown(part)}: {path} is missing")
        paths[part] = path
    return paths


def all_finite(tensor: Tensor) -> bool:
    """Whether every value is a number: one that is none shows in both ends, and a piece at a time takes no memory."""
    return not (tensor.numel() and tensor.is_floating_point()) or all(
        bool(end.isfinite()) for piece in tensor.reshape(-1).split(PIECE_ELEMENTS) for end in piece.aminmax()
    )


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
    parts = [f"without {shown(absent[0])}" if absent else "", f"with {shown(strange[0])}" if strange else ""]
    return " and ".join(part for part in parts if part)


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
    def _check_dtype(self) -> Self:
        if None not in (self.dtype, self.torch_dtype) and self.dtype != self.torch_dtype:
            raise ValueError(f"dtype = {self.dtype!r} and torch_dtype = {self.torch_dtype!r}: the two must be the same")
        return self

    @model_validator(mode="after")
    def _refuse_loading_elsewhere(self) -> Self:
        found = [key for key in FORBIDDEN_KEYS if (self.model_extra or {}).get(key)]
        if found:
            raise ValueError(f"the key {found[0]!r} is not allowed: a model folder holds weights, and runs nothing")
        return self


def check_folder(folder: Path) -> None:
    """Refuse what is no folder, and an adapter, whose loader would fetch the model that it names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of a model")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter_config.json, which names another model; give the merged model")


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
    check_folder(folder)
    path = folder / "config.json"
    settings = read_settings(path, kind)
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists() == index.exists():
        raise UserError(f"{folder}: exactly one of {single.name} and {index.name} must be there")
    held = [tensor_specs(single)] if single.exists() else indexed_specs(index).values()
    specs = {name: spec for part in held for name, spec in part.items()}
    if settings.num_layers_in_all > len(specs):
        raise UserError(f"{path} declares {settings.num_layers_in_all} layers; the weights are {len(specs)} tensors")
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
    for name, tensor in network.state_dict().items():
        if not all_finite(tensor):
            raise UserError(f"{folder}: {name} holds values that are not finite; the training that wrote it went wrong")


def _sizes(path: Path, build: Callable[[dict[str, Any]], nn.Module], settings: dict[str, Any]) -> dict[str, Tensor]:
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build(settings).state_dict()
    except BAD_SETTINGS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: no network can be made from these settings: {reason}") from error
