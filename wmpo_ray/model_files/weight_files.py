"""Weights on the disk: which files they are, which tensors they hold, and how they get into a network.

Names, shapes and sizes are compared before memory is taken; then one tensor is read at a time. A folder may be in the
layout of diffusers or transformers, in one file or in parts with an index, or one that a training script left
(`ema.pt`, `model/`). Everything here raises UserError, which names the file and the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import BAD_SETTINGS, MAX_JSON_BYTES, TensorSpec, inside, read_json, tensor_specs
from wmpo_ray.model_files.pickled_tensors import SUFFIXES, pickled_specs, read_pickled

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Network = TypeVar("Network", bound=nn.Module)

STEMS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
EMA_FILE = "ema.pt"
RAW_FOLDER = "model"
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # the others: 1
MAPPED_BYTES = 2**27
MAX_NAMED = 3  # tensors named in an error


def num_bytes_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * ITEM_BYTES.get(spec.dtype, 1)


class WeightFiles(NamedTuple):
    """Where weights are: `parts` hold the tensors of `specs`, each in the file that `part_of` says."""

    path: Path
    layout: str
    parts: tuple[Path, ...]
    specs: dict[str, TensorSpec]
    part_of: dict[str, Path]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(spec.shape) for spec in self.specs.values())

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes_of(spec) for spec in self.specs.values())


class Fit(NamedTuple):
    """Names of a network's tensors compared with those of files; `wrong` are lines, the others names."""

    in_file: dict[str, str]  # name in the file -> name in the network
    missing: list[str]
    foreign: list[str]
    wrong: list[str]


# -- finding -----------------------------------------------------------------------------------------------------


def find_weights(path: str | Path, ema: bool = True) -> WeightFiles:
    """The weights at `path`, a file or a folder. `ema`: averaged weights (`ema.pt`) are taken before raw ones."""
    path = Path(path)
    if path.is_file():
        return _of_index(path, path) if path.name.endswith(".index.json") else _of_file(path, path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    averaged = path / EMA_FILE
    if ema and averaged.is_file():
        return _of_file(path, averaged)
    for folder in (path, path / RAW_FOLDER):
        if found := _in_folder(path, folder):
            return found
    if averaged.is_file():
        return _of_file(path, averaged)
    raise UserError(
        f"{path} holds no weights: none of {', '.join(STEMS)} (or its .index.json), {EMA_FILE} and {RAW_FOLDER}/ is there"
    )


def _in_folder(path: Path, folder: Path) -> WeightFiles | None:
    for name in STEMS:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists() and index.exists():
            raise UserError(f"{folder}: exactly one of {single.name} and {index.name} must be there")
        if single.exists():
            return _of_file(path, single)
        if index.exists():
            return _of_index(path, index)
    loose = [file for file in sorted(folder.glob("*")) if file.suffix in (".safetensors", *SUFFIXES)]
    loose = [file for file in loose if file.name != EMA_FILE]
    if len(loose) > 1:
        raise UserError(f"{folder} holds several files of weights, {', '.join(f.name for f in loose[:3])}: name one")
    return _of_file(path, loose[0]) if loose else None


def _of_file(path: Path, file: Path) -> WeightFiles:
    specs = _specs(file)
    return WeightFiles(path, file.name, (file,), specs, dict.fromkeys(specs, file))


def _of_index(path: Path, index: Path) -> WeightFiles:
    content = read_json(index, MAX_JSON_BYTES)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(part, str) for part in names.values()):
        raise UserError(f"{index} is damaged: it lists no files")
    parts = {name: inside(index.parent, name, str(index)) for name in sorted(set(names.values()))}
    specs: dict[str, TensorSpec] = {}
    for part_name, part in parts.items():
        if not part.is_file():
            raise UserError(f"{index} names {shown(part_name)}, which is missing")
        held = _specs(part)
        for name in (name for name, owner in names.items() if owner == part_name):
            if name not in held:
                raise UserError(f"{index} says that {shown(name)} is in {part_name}, where it is not")
            specs[name] = held[name]
    part_of = {name: parts[part] for name, part in names.items()}
    return WeightFiles(path, f"{index.name}, {len(parts)} parts", tuple(parts.values()), specs, part_of)


def _specs(file: Path) -> dict[str, TensorSpec]:
    if file.suffix == ".safetensors":
        specs = tensor_specs(file)
    elif file.suffix in SUFFIXES:
        specs = pickled_specs(file)
    else:
        raise UserError(f"{file}: weights are read from .safetensors, {', '.join(SUFFIXES)} and .index.json")
    claimed = sum(num_bytes_of(spec) for spec in specs.values())
    # Tied tensors stand in a file once and in the list twice.
    if claimed > 2 * file.stat().st_size:
        raise UserError(f"{file}: its tensors claim {claimed} bytes, the file has {file.stat().st_size}")
    return specs


# -- comparing and reading ---------------------------------------------------------------------------------------


def published_as_is(name: str) -> tuple[str, ...]:
    """The names that a tensor of a network may have in a file: its own."""
    return (name,)


def compare(
    specs: Mapping[str, TensorSpec],
    network: nn.Module,
    names: Callable[[str], tuple[str, ...]] = published_as_is,
) -> Fit:
    """Which tensors of a network are in files, by name and shape; `names` gives their possible names there."""
    fit = Fit({}, [], [], [])
    for name, tensor in network.state_dict().items():
        stored = next((candidate for candidate in names(name) if candidate in specs), None)
        if stored is None:
            fit.missing.append(name)
            continue
        fit.in_file[stored] = name
        spec = specs[stored]
        if spec.shape != tuple(tensor.shape) or spec.is_floating != tensor.is_floating_point():
            fit.wrong.append(f"{stored} is {spec.dtype} {spec.shape}, the network has {tuple(tensor.shape)}")
    fit.foreign.extend(name for name in specs if name not in fit.in_file)
    return fit


def load_network(
    files: WeightFiles,
    build: Callable[[], Network],
    *,
    names: Callable[[str], tuple[str, ...]] = published_as_is,
    ignored: Callable[[str], bool] = lambda name: False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """The network that `build` makes, filled from files, in evaluation mode; `dtype` None keeps float32.

    `build` is called where tensors take no memory. Foreign tensors are refused unless `ignored` says so of their name,
    and so are values that are not finite.
    """
    import torch

    try:
        with torch.device("meta"):
            network = build()
    except BAD_SETTINGS as error:
        raise UserError(f"{files.path}: no network can be made of these sizes: {error}") from error
    fit = compare(files.specs, network, names)
    foreign = [name for name in fit.foreign if not ignored(name)]
    for what, found in (("lack", fit.missing), ("have the wrong shape:", fit.wrong), ("hold in addition", foreign)):
        if found:
            more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise UserError(f"{files.path}: the weights {what} {', '.join(found[:MAX_NAMED])}{more}")
    torch.nn.Module.to(network, dtype or torch.float32)  # diffusers' own warns of modules that there are none of
    network = network.to_empty(device=device)
    state = network.state_dict()
    for name, tensor in read_tensors(files, fit.in_file):
        check_values(name, tensor, files.path)
        state[fit.in_file[name]].copy_(tensor)
    return network.eval()


def read_tensors(files: WeightFiles, wanted: Mapping[str, str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of files, one at a time; only the `wanted` ones if given."""
    for part in files.parts:
        names = [name for name, owner in files.part_of.items() if owner == part and (not wanted or name in wanted)]
        if part.suffix in SUFFIXES:
            yield from read_pickled(part, names)
        else:
            yield from _read_safetensors(part, names, files.specs)


def _read_safetensors(part: Path, names: list[str], specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    """Opened again after every `MAPPED_BYTES`: what was read of an open file counts as memory of this process."""
    from safetensors import safe_open

    rest = list(reversed(names))
    while rest:
        mapped = 0
        with safe_open(part, "pt") as file:
            while rest and mapped < MAPPED_BYTES:
                mapped += num_bytes_of(specs[rest[-1]])
                yield rest[-1], file.get_tensor(rest.pop())


def check_values(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse values that are not finite: everything computed with them would be lost."""
    import torch

    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{path}: {name} holds values that are not finite; the training that wrote it went wrong")
