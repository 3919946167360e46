"""Weights on the disk: which files they are, which tensors they hold, and how they get into a network.

Names, shapes and sizes are compared before memory is taken; then one tensor is read at a time. A folder may be in the
layout of diffusers or transformers, in one file or in parts with an index, or one that a training script left
(`ema.pt`, `model/`). Everything here raises UserError, which names the file and the tensor.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import BAD_SETTINGS, FLOATS, TensorSpec, all_finite, indexed_specs, tensor_specs
from wmpo_ray.model_files.pickled_tensors import SUFFIXES, open_pickled, pickled_spec
from wmpo_ray.model_files.weight_names import own_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger(__name__)

STEMS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
EMA_FILE = "ema.pt"
RAW_FOLDER = "model"
SAFETENSORS = ".safetensors"
ITEM_BYTES = {  # the others: 1
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
}
MAPPED_BYTES, MAPPED_SHARE = 2**24, 32
MAX_NAMED = 3  # tensors named in an error


def num_bytes_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * ITEM_BYTES.get(spec.dtype, 1)


class WeightFiles(NamedTuple):
    """Where weights are: `parts` hold the tensors of `specs`, each in the file that `part_of` says.

    Names are the network's own. `stored` are those in the files, `taken_off` says what they have in addition.
    """

    path: Path
    layout: str
    parts: tuple[Path, ...]
    specs: dict[str, TensorSpec]
    part_of: dict[str, Path]
    stored: dict[str, str]
    taken_off: str
    ema: bool

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
        return _of_file(path, path, ema)
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    averaged = path / EMA_FILE
    if ema and averaged.is_file():
        return _of_file(path, averaged, ema)
    for folder in (path, path / RAW_FOLDER):
        if (found := _of_stems(path, folder, ema)) or (found := _of_loose_file(path, folder, ema)):
            return found
    if averaged.is_file():
        return _of_file(path, averaged, ema)
    raise UserError(
        f"{path} holds no weights: none of {', '.join(STEMS)} (or its .index.json), {EMA_FILE} and {RAW_FOLDER}/ is there"
    )


def find_safetensors(folder: Path, stem: str) -> WeightFiles:
    """The weights `<stem>.safetensors` of a folder, or those of its index: of no other name or kind."""
    if found := _of_stems(folder, folder, False, (f"{stem}{SAFETENSORS}",)):
        return found
    raise UserError(f"{folder}: exactly one of {stem}{SAFETENSORS} and {stem}{SAFETENSORS}.index.json must be there")


def _of_stems(path: Path, folder: Path, ema: bool, stems: tuple[str, ...] = STEMS) -> WeightFiles | None:
    for name in stems:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists() and index.exists():
            raise UserError(f"{folder}: exactly one of {single.name} and {index.name} must be there")
        if single.exists() or index.exists():
            suffixes = (SAFETENSORS,) if name.endswith(SAFETENSORS) else SUFFIXES
            return _of_file(path, single if single.exists() else index, ema, suffixes)
    return None


def _of_loose_file(path: Path, folder: Path, ema: bool) -> WeightFiles | None:
    loose = [file for file in sorted(folder.glob("*")) if file.suffix in (SAFETENSORS, *SUFFIXES)]
    loose = [file for file in loose if file.name != EMA_FILE]
    if len(loose) > 1:
        raise UserError(f"{folder} holds several files of weights, {', '.join(f.name for f in loose[:3])}: name one")
    return _of_file(path, loose[0], ema) if loose else None


def _of_file(path: Path, file: Path, ema: bool, suffixes: tuple[str, ...] = (SAFETENSORS, *SUFFIXES)) -> WeightFiles:
    """A file of weights, or an index of several."""
    wrappers: set[str] = set()

    def specs_of(part: Path) -> dict[str, TensorSpec]:
        specs, wrapper = _specs(part, ema)
        wrappers.add(wrapper)
        return specs

    is_index = file.name.endswith(".index.json")
    held = indexed_specs(file, specs_of, suffixes) if is_index else {file: specs_of(file)}
    place = {stored: part for part, specs in held.items() for stored in specs}
    names, prefixes = own_names(place, str(file))
    removed = [f"taken out of {wrapper!r}" for wrapper in sorted(wrappers) if wrapper]
    taken_off = ", ".join([*removed, *(f"without the prefix {prefix!r}" for prefix in prefixes)])
    layout = f"{file.name}, {len(held)} parts" if is_index else file.name
    return WeightFiles(
        path,
        f"{layout}, {taken_off}" if taken_off else layout,
        tuple(held),
        {name: held[place[stored]][stored] for name, stored in names.items()},
        {name: place[stored] for name, stored in names.items()},
        names,
        taken_off,
        ema,
    )


def _specs(file: Path, ema: bool) -> tuple[dict[str, TensorSpec], str]:
    """What a file holds, and the key that leads to it."""
    wrapper = ""
    if file.suffix == SAFETENSORS:
        specs = tensor_specs(file)
    elif file.suffix in SUFFIXES:
        tensors, wrappers = open_pickled(file, ema)
        specs, wrapper = {name: pickled_spec(tensor) for name, tensor in tensors.items()}, ".".join(wrappers)
    else:
        raise UserError(f"{file}: weights are read from {SAFETENSORS}, {', '.join(SUFFIXES)} and .index.json")
    claimed = sum(num_bytes_of(spec) for spec in specs.values())
    # Tied tensors are in a file once and in the list twice.
    if claimed > 2 * file.stat().st_size:
        raise UserError(f"{file}: its tensors claim {claimed} bytes, the file has {file.stat().st_size}")
    return specs, wrapper


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
        if spec.shape != tuple(tensor.shape):
            fit.wrong.append(f"{stored} is {spec.dtype} {spec.shape}, the network has {tuple(tensor.shape)}")
        elif spec.is_floating != tensor.is_floating_point():
            wanted = f"one of {', '.join(FLOATS)}" if tensor.is_floating_point() else str(tensor.dtype)
            fit.wrong.append(f"{stored} is {spec.dtype}, the network has {wanted}: convert it first")
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
    for what, found in (
        ("lack", fit.missing),
        ("have the wrong shape or dtype:", fit.wrong),
        ("hold in addition", foreign),
    ):
        if found:
            more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise UserError(f"{files.path}: the weights {what} {', '.join(found[:MAX_NAMED])}{more}")
    torch.nn.Module.to(network, dtype or torch.float32)  # diffusers' own warns of modules that there are none of
    network = network.to_empty(device=device)
    state = network.state_dict()
    for name, tensor in read_tensors(files, fit.in_file):
        state[fit.in_file[name]].copy_(tensor)
        check_values(name, state[fit.in_file[name]], files.path)
    if files.taken_off:
        logger.info("%s: weights %s", files.path, files.taken_off)
    return network.eval()


def read_tensors(files: WeightFiles, wanted: Mapping[str, str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of files, one at a time; only the `wanted` ones if given.

    A file is opened again after every `MAPPED_BYTES`, or after a `MAPPED_SHARE`-th of large weights: what was read of an
    open one counts as memory of this process.
    """
    at_once = max(MAPPED_BYTES, files.num_bytes // MAPPED_SHARE)
    for part in files.parts:
        names = [name for name, owner in files.part_of.items() if owner == part and (wanted is None or name in wanted)]
        rest = list(reversed(names))
        while rest:
            mapped = 0
            with _opened(part, files.ema) as read:
                while rest and mapped < at_once:
                    mapped += num_bytes_of(files.specs[rest[-1]])
                    yield rest[-1], read(files.stored[rest.pop()])


@contextmanager
def _opened(part: Path, ema: bool) -> Iterator[Callable[[str], Tensor]]:
    if part.suffix in SUFFIXES:
        yield open_pickled(part, ema).tensors.__getitem__
        return
    from safetensors import safe_open

    with safe_open(part, "pt") as file:
        yield file.get_tensor


def check_values(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse values that are not finite: everything computed with them would be lost."""
    if not all_finite(tensor):
        raise UserError(
            f"{path}: {name} holds values that are not finite in {tensor.dtype}; the training that wrote it went wrong"
        )
