"""Seeds: every random number of a run is a function of a key, so that any request can be run again elsewhere."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a key such as (run seed, "chunk", update, group, member, chunk).

    The hash is part of the file format: the same key gives the same seed on every machine and version.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*key))


def keyed_noise(seeds: list[int], shape: tuple[int, ...], uniform: bool = False) -> Tensor:
    """Independent noise for each seed, [len(seeds), *shape] float32: normal, or uniform in [0, 1)."""
    draw = torch.rand if uniform else torch.randn
    return torch.stack([draw(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
