"""Names of tensors in files that were written by way of a wrapper: DDP, torch.compile, FSDP, a module of a training script."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown

# A kind of model is known by a tensor that no other kind has.
MARKERS = {
    "x_embedder.proj.weight": "world model (STDiT)",
    "encoder.conv_in.weight": "autoencoder (AutoencoderKL)",
    "videomae.embeddings.patch_embeddings.projection.weight": "reward model (VideoMAE classifier)",
    "language_model.model.embed_tokens.weight": "policy (OpenVLA)",
    "decoder.layers.0.weight": "tiny autoencoder (AutoencoderTiny)",
}
ADAPTER_PREFIX = "base_model.model."  # of peft: not around a model, but of one whose adapters are to be merged
# Modules that wrap another one, be it the whole network or one block of it.
WRAPPER_MODULES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def own_names(stored: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The network's own names -> those in the file, and the parts of names that were taken off.

    Raises UserError where only some of the tensors have a prefix, or two become one.
    """
    names: dict[str, str] = {}
    taken_off = set()
    for name in stored:
        own = WRAPPER_MODULES.sub("", name)
        if own in names:
            raise UserError(f"{where} holds both {shown(names[own])} and {shown(name)}: save one of the two alone")
        names[own] = name
        taken_off.update(WRAPPER_MODULES.findall(name))
    prefix = _prefix(names)
    if outside := [name for name in names if not name.startswith(prefix)]:
        raise UserError(
            f"{where}: {len(names) - len(outside)} of {len(names)} tensors have the prefix {prefix!r} and "
            f"{shown(outside[0])} has not; save the tensors of one network alone"
        )
    return {name.removeprefix(prefix): held for name, held in names.items()}, [
        *filter(None, [prefix]),
        *sorted(taken_off),
    ]


def _prefix(names: Iterable[str]) -> str:
    """The prefix of the tensor that identifies the kind of the network; "" if it is unknown."""
    known = list(names)
    if any(name in MARKERS for name in known):
        return ""
    found = [name.removesuffix(marker) for marker in MARKERS for name in known if name.endswith(f".{marker}")]
    return found[0] if found and not found[0].endswith(ADAPTER_PREFIX) else ""
