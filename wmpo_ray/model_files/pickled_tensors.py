"""Files that torch.save wrote: published checkpoints come as `.pt`, `.pth` and `.bin`.

`torch.load` maps them from the disk and runs nothing of theirs. Done here is what it does not do: with weights_only=True
it reads pickle protocols 2 and 3 alone, it takes whatever memory a list of tensors asks for, and it knows no wrappers.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import BAD_SETTINGS, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".bin")
MAX_LIST_BYTES = 64 * 2**20  # of names and shapes; the weights lie beside it
PROTOCOLS = (2, 3, 4, 5)
PROTOCOLS_OF_TORCH = (2, 3)  # that it reads with weights_only=True
MAX_WRAPPERS = 4  # one inside the other
# Keys under which training scripts keep weights, most wanted first, if a file holds several sets.
AVERAGED = ("ema", "ema_state_dict", "model_ema", "ema_model")
RAW = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
# Names that describe plain tensors. `torch.load` would also call bytearray(n) for any n, for example.
REBUILDERS = ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
BUILDING = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")  # objects by ways that no tensor needs
BAD_FILE = (*BAD_SETTINGS, AssertionError, EOFError, OSError, pickle.UnpicklingError, struct.error) + (
    (zipfile.BadZipFile, zlib.error)
)
DTYPES = {  # torch's name -> safetensors'
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


class Pickled(NamedTuple):
    """Tensors by name, mapped from the disk, and the keys that lead to them in the file, such as `("model",)`."""

    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...]


def open_pickled(path: Path, ema: bool = True) -> Pickled:
    """The weights in a file of torch.save. `ema`: averaged weights are taken before raw ones where it holds both.

    Raises UserError for anything else, and for tensors that are not plain or claim more than their storage holds.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path} is missing, or no regular file")
    try:
        data, sizes = _read_list(path)
        protocol = _check_list(path, data)
        # torch's own restricted unpickler wherever it can read the file.
        how: dict[str, Any] = {"weights_only": True} if protocol in PROTOCOLS_OF_TORCH else _restricted(path)
        content = torch.load(path, "cpu", mmap=True, **how)
    except BAD_FILE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is no file of torch.save, or is damaged ({reason[:200]}); one older than torch 1.6 must be saved again"
        ) from error
    tensors, wrappers = _state_dict(content, path, ema)
    for name, tensor in tensors.items():
        _check_tensor(f"{path}: {name}", tensor)
    _check_storages(path, tensors, sizes)
    return Pickled({name: tensor.detach() for name, tensor in tensors.items()}, wrappers)


def pickled_spec(tensor: Tensor) -> TensorSpec:
    name = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(DTYPES.get(name, name), tuple(tensor.shape))


# -- the list of tensors -----------------------------------------------------------------------------------------


def _read_list(path: Path) -> tuple[bytes, Counter[int]]:
    """The archive's pickle, and how many of its entries have each size in bytes.

    Neither may be packed: torch would map a storage as it is, and unpack the pickle to any size.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # The names differ in any case and are in one folder: every lookup finds the same entry.
        folders = {entry.filename.partition("/")[0] for entry in entries}
        lists = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(lists) != 1 or lists[0].file_size > MAX_LIST_BYTES:
            raise ValueError(f"it holds no list of tensors, or one of more than {MAX_LIST_BYTES} bytes")
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or len(folders) != 1 or len({entry.filename.casefold() for entry in entries}) != len(entries):
            raise ValueError("torch.save writes every entry once and uncompressed")
        return archive.read(lists[0]), Counter(entry.file_size for entry in entries)


def _check_list(path: Path, data: bytes) -> int:
    """The protocol of a pickle that asks for tensors alone. Nothing is built yet."""
    protocol = 0
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "PROTO":
            protocol = argument
        elif opcode.name == "GLOBAL":
            _check_name(path, *argument.split(" ", 1))
        elif opcode.name in BUILDING:
            raise UserError(f"{path} holds code ({opcode.name}) besides tensors; it was not run")
        elif opcode.name == "LONG_BINPUT" and argument > len(data):
            raise ValueError(f"it remembers {argument} things")  # room is made for as many, whatever there are
    if protocol not in PROTOCOLS:
        raise ValueError(f"pickle protocol {protocol}; known are {PROTOCOLS}")
    return protocol


def _check_name(path: Path, module: str, name: str) -> None:
    import torch

    known = (
        (module, name) == ("collections", "OrderedDict")
        or (module == "torch._utils" and name in REBUILDERS)
        or (module in ("torch", "torch.storage") and name.endswith("Storage") and name.isalnum())
        or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
    )
    if not known:
        raise UserError(
            f"{path} asks for {shown(f'{module}.{name}')}, which is no plain tensor; it was not run. Save the weights alone"
        )


def _restricted(path: Path) -> dict[str, Any]:
    """Arguments of `torch.load` for the protocols of which its own restricted unpickler knows too few opcodes."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            _check_name(path, module, name)
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            found = super().find_class(module, name)
            # A function of its own for each file: a pickle may set attributes of what it names.
            return (lambda *arguments: found(*arguments)) if name in REBUILDERS else found

    return {"weights_only": False, "pickle_module": SimpleNamespace(__name__="restricted", Unpickler=Unpickler)}


# -- what it holds -----------------------------------------------------------------------------------------------


def _state_dict(content: Any, path: Path, ema: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The dictionary of names and tensors, and the keys that lead there."""
    import torch

    found = dict(_state_dicts(content))
    if not found:
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path} holds no weights: a dictionary of names and tensors is needed")
        strange = next(key for key, value in content.items() if not isinstance(value, torch.Tensor))
        raise UserError(f"{path} holds something that is no tensor under {shown(strange)}; save the weights alone")
    if len(found) == 1:
        return next((tensors, keys) for keys, tensors in found.items())
    order = (*AVERAGED, *RAW) if ema else (*RAW, *AVERAGED)
    ranked = sorted(found, key=lambda keys: [order.index(key) if key in order else len(order) for key in keys])
    if not any(key in order for key in ranked[0]):
        names = ", ".join(".".join(keys) for keys in ranked[:3])
        raise UserError(f"{path} holds several sets of tensors, {names}: save the weights alone")
    return found[ranked[0]], ranked[0]


def _state_dicts(content: Any, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Dictionaries of tensors alone in dictionaries of anything; an optimizer's state is numbered, not named."""
    import torch

    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return []
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return [(keys, content)]
    if len(keys) == MAX_WRAPPERS:
        return []
    return [found for key, value in content.items() for found in _state_dicts(value, (*keys, key))]


def _check_tensor(where: str, tensor: torch.Tensor) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "quantised" if tensor.is_quantized else "without values" if tensor.is_meta else f"{tensor.layout}"
        raise UserError(f"{where} is {what}: only plain tensors are read; save it as one")
    # A stride of 0 shows one element any number of times.
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        raise UserError(f"{where} claims {tensor.numel()} elements of {tensor.dtype}, its storage holds {held} bytes")


def _check_storages(path: Path, tensors: Mapping[str, Tensor], sizes: Counter[int]) -> None:
    """Each storage has the size of an entry: torch maps what it claims, be it beyond the entry's end."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(_storage, tensors.values())}
    if strange := Counter(storages.values()) - sizes:
        raise UserError(f"{path} is damaged: a storage claims {next(iter(strange))} bytes, which no entry of it has")


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
