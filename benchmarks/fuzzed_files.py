"""A small good file of each format that is read, and how files are mutated."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.exchange.lerobot_export import export_lerobot
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import save_episodes

NUM, STEPS, DIMS, SIZE = 3, 5, 7, (8, 6)
TELLING = (0, 1, 0x7F, 0x80, 0xFF)  # bytes that make sizes, signs and types what nobody expects
DIGITS = b"0123456789"


def episodes() -> Episodes:
    random_numbers = np.random.default_rng(0)
    return Episodes(
        random_numbers.integers(0, 256, (NUM, STEPS + 1, *SIZE, 3), np.uint8),
        random_numbers.uniform(-1, 1, (NUM, STEPS, DIMS)).astype(np.float32),
        np.full(NUM, STEPS),
        np.array([True, False, True]),
        ("push",) * NUM,
        np.arange(NUM),
        {"jam": np.array([False, True, False])},
    )


def trajectory_file(folder: Path) -> Path:
    path = folder / "sample.parquet"
    save_episodes(path, episodes(), Provenance(origin="real", made_by="expert", environment={"kind": "pocket"}))
    return path


def hdf5_file(folder: Path) -> Path:
    path = folder / "sample.hdf5"
    export_robomimic(trajectory_file(folder), path)
    return path


def tar_file(folder: Path) -> Path:
    """With the times that WebDataset writes, which need headers of their own."""
    path, sample = folder / "sample.tar", episodes()
    with tarfile.open(path, "w") as archive:
        for i in range(NUM):
            buffers = {"video.npy": io.BytesIO(), "action.npy": io.BytesIO()}
            np.save(buffers["video.npy"], np.asarray(sample.frames[i]))
            np.save(buffers["action.npy"], sample.actions[i])
            meta = {"complete": bool(sample.success[i]), "finish_step": STEPS, "unique_id": str(i)}
            contents = {name: buffer.getvalue() for name, buffer in buffers.items()} | {
                "meta.json": json.dumps(meta).encode()
            }
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{i}.{name}")
                member.size, member.mtime = len(content), 1700000000.25
                archive.addfile(member, io.BytesIO(content))
    return path


def lerobot_folder(folder: Path) -> Path:
    path = folder / "lerobot"
    shutil.rmtree(path, ignore_errors=True)
    export_lerobot(trajectory_file(folder), path)
    return path


def files_of(sample: Path) -> list[Path]:
    """What there is to mutate; of a folder the files that a reader looks at."""
    if sample.is_file():
        return [sample]
    return [
        sample / name
        for name in ("meta/info.json", "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet")
    ]


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "robomimic_hdf5": hdf5_file,
    "rollout_tar": tar_file,
    "lerobot_folder": lerobot_folder,
    "trajectory_parquet": trajectory_file,
}


def mutated(good: bytes, chance: random.Random) -> bytes:
    """Single bytes, runs, copies from elsewhere, other digits, missing and doubled parts; sometimes several of them."""
    content = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        chance.choice(MUTATIONS)(content, chance)
        if not content:
            break
    return bytes(content)


def _other_byte(content: bytearray, chance: random.Random) -> None:
    place = _place(content, chance)
    content[place] = chance.choice((*TELLING, content[place] ^ (1 << chance.randrange(8)), chance.randrange(256)))


def _other_digit(content: bytearray, chance: random.Random) -> None:
    """Sizes in text: JSON, headers of arrays, octal numbers of an archive."""
    places = [i for i, byte in enumerate(content) if byte in DIGITS]
    if places:
        content[chance.choice(places)] = chance.choice(DIGITS)


def _run(content: bytearray, chance: random.Random) -> None:
    begin = _place(content, chance)
    count = min(chance.choice((2, 4, 8, 64)), len(content) - begin)
    content[begin : begin + count] = bytes([chance.choice(TELLING)]) * count


def _copy(content: bytearray, chance: random.Random) -> None:
    begin, source = _place(content, chance), _place(content, chance)
    count = min(chance.choice((4, 8, 64, 512)), len(content) - max(begin, source))
    content[begin : begin + count] = content[source : source + count]


def _cut_off(content: bytearray, chance: random.Random) -> None:
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]


def _removed(content: bytearray, chance: random.Random) -> None:
    begin = _place(content, chance)
    del content[begin : begin + chance.choice((1, 8, 512))]


def _doubled(content: bytearray, chance: random.Random) -> None:
    begin = _place(content, chance)
    content[begin:begin] = content[begin : begin + chance.choice((1, 8, 512))]


def _place(content: bytearray, chance: random.Random) -> int:
    """Half of the time near an end: that is where headers and indices stand."""
    size = len(content)
    near = min(size, 2048)
    return chance.choice(
        (chance.randrange(size), chance.randrange(size), chance.randrange(near), size - 1 - chance.randrange(near))
    )


MUTATIONS = (_other_byte, _other_byte, _other_byte, _other_digit, _run, _copy, _cut_off, _removed, _doubled)
