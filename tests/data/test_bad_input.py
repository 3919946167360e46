"""What can be wrong with recorded episodes, in every format that is read: an error of one line names file, episode and place."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.foreign_files import npy_bytes, rollout, write_hdf5, write_tar
from tests.support.hostile_files import edit_json, npy, refusal
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.exchange.lerobot_export import IMAGE_KEY, export_lerobot
from wmpo_ray.data.exchange.recorded_source import SourceNeeds, check_source
from wmpo_ray.data.store import save_episodes

NUM, STEPS, DIMS, SIZE = 3, 5, 7, (8, 6)
FILE, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TEXT = "insert the nut"
Make = Callable[[Path, str], Path]
# The same faults in each format, all in the episode of number 1.
FAULTS = ("short", "nan", "dims", "size", "language", "link", "shape")


def needs(path: Path, **changes: object) -> SourceNeeds:
    asked = SourceNeeds(
        key="demos.source", path=str(path), count_key="demos.num_trajectories", num_episodes=NUM,
        frame_shape=(*SIZE, 3), action_dims=DIMS, instructions=(), horizon=10, chunk_length=4, held_out_from=10**6,
        is_held_out=False, needs_starts="", must_be_real=False,
    )  # fmt: skip
    return asked._replace(instructions=(TEXT,))._replace(**changes)


def with_nan(actions: np.ndarray) -> np.ndarray:
    actions = actions.copy()
    actions[2, 3] = np.nan
    return actions


def hdf5(folder: Path, fault: str) -> Path:
    path = write_hdf5(folder / "a.hdf5")
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_1"]
        key, values = "actions", demo["actions"][:]
        match fault:
            case "short":
                demo["rewards"][:] = [0, 1, 0, 0, 0]
            case "nan":
                values = with_nan(values)
            case "dims":
                values = values[:, :6]
            case "size":
                key, values = "obs/agentview_image", np.zeros((STEPS, 9, 6, 3), np.uint8)
            case "link":
                values = h5py.ExternalLink("/etc/passwd", "/x")
        del demo[key]
        if fault == "shape":
            demo.create_dataset(key, (10**12, DIMS), "f8", chunks=(1, DIMS), compression="gzip")
        else:
            demo[key] = values
    return path


def tar(folder: Path, fault: str) -> Path:
    good = np.random.default_rng(1).uniform(-1, 1, (STEPS, DIMS)).astype(np.float32)
    changes: dict[str, dict[str, bytes]] = {
        "short": {"meta_json": json.dumps({"complete": True, "finish_step": 2}).encode()},
        "nan": {"action_npy": npy_bytes(with_nan(good))},
        "dims": {"action_npy": npy_bytes(good[:, :6])},
        "size": {"video_npy": npy_bytes(np.zeros((STEPS + 1, 9, 6, 3), np.uint8))},
        "shape": {"action_npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 7), }", b"")},
    }
    members = rollout(1, **changes.get(fault, {}))
    if fault != "link":
        return write_tar(folder / "a.tar", {"0": rollout(0), "1": members, "2": rollout(2)})
    del members["video.npy"]
    path = write_tar(folder / "a.tar", {"0": rollout(0), "1": members})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("1.video.npy")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return path


def episodes(fault: str = "") -> Episodes:
    random = np.random.default_rng(0)
    found = Episodes(
        random.integers(0, 256, (NUM, STEPS + 1, *SIZE, 3), np.uint8),
        random.uniform(-1, 1, (NUM, STEPS, DIMS)).astype(np.float32),
        np.full(NUM, STEPS),
        np.ones(NUM, bool),
        (TEXT,) * NUM,
        np.arange(NUM),
    )
    match fault:
        case "short":
            found.lengths[1] = 2
        case "nan":
            found.actions[1] = with_nan(found.actions[1])
        case "language":
            found = replace(found, instructions=(TEXT, " ", TEXT))
        case "dims":
            found = replace(found, actions=found.actions[..., :6])
        case "size":
            found = replace(found, frames=np.zeros((NUM, STEPS + 1, 9, 6, 3), np.uint8))
    return found


def column(folder: Path, file: str, name: str, edit: Callable[[list], object]) -> None:
    table = pq.read_table(folder / file)
    values = table[name].to_pylist()
    edit(values)
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type)), folder / file
    )


def lerobot(folder: Path, fault: str) -> Path:
    path, rows = folder / "set", STEPS + 1
    save_episodes(folder / "own.parquet", episodes(fault if fault in ("short", "nan") else ""))
    export_lerobot(folder / "own.parquet", path)
    (folder / "own.parquet").unlink()
    match fault:
        case "dims":
            features = json.loads((path / "meta/info.json").read_text())["features"]
            edit_json(path / "meta/info.json", features={**features, "action": {**features["action"], "shape": [6]}})
        case "size":
            buffer = io.BytesIO()
            Image.new("RGB", (6, 9)).save(buffer, "PNG")
            column(path, FILE, IMAGE_KEY, lambda values: values[rows + 3].update(bytes=buffer.getvalue()))
        case "language":
            column(path, EPISODES, "tasks", lambda values: values.__setitem__(1, []))
        case "link":
            column(path, FILE, IMAGE_KEY, lambda values: values[rows + 3].update(bytes=None, path="/etc/passwd"))
        case "shape":
            column(path, EPISODES, "length", lambda values: values.__setitem__(1, 10**12))
    return path


def parquet(folder: Path, fault: str) -> Path:
    path = folder / "a.parquet"
    save_episodes(path, episodes(fault))
    match fault:
        case "link":
            path.unlink()
            path.symlink_to("/dev/zero")
        case "shape":
            table = pq.read_table(path)
            header = {**json.loads(table.schema.metadata[b"wmpo_ray"]), "horizon": 10**15}
            pq.write_table(table.replace_schema_metadata({b"wmpo_ray": json.dumps(header).encode()}), path)
    return path


READERS: dict[str, tuple[Make, str]] = {
    "hdf5": (hdf5, "data/demo_1"),
    "tar": (tar, "1"),
    "lerobot": (lerobot, "episode 1"),
    "parquet": (parquet, "row 1"),
}
NAN = "the action of step 2, dimension 3, is nan"
# By reader what is named beside the file and the episode; where the whole file is at fault, the episode is not (None).
SAYS: dict[str, dict[str, str]] = {
    "short": dict.fromkeys(READERS, "2 steps, fewer than rollout.chunk_length = 4"),
    "nan": dict.fromkeys(READERS, NAN),
    "dims": {"hdf5": "actions of 6 dimensions", "tar": "actions of 6 dimensions", "lerobot": "actions are float64 (5, 7), expected floats of 6 dimensions",
             "parquet": "actions of 6 dimensions; the environment's have 7"},
    "size": {"hdf5": "frames of 9 x 6 pixels", "tar": "frames of 9 x 6 pixels",
             "lerobot": "frame 3: an image of 9 x 6 pixels", "parquet": "frames of 9 x 6 pixels; the environment's have 8 x 6"},
    "language": dict.fromkeys(READERS, "no instruction"),
    "link": {"hdf5": "actions is a ExternalLink", "tar": "1.video.npy", "lerobot": "frame 3: no image in the table",
             "parquet": "is no regular file"},
    "shape": {"hdf5": "of which 0 are stored", "tar": "1000000000000", "lerobot": "steps; an episode has 1 to",
              "parquet": "needs 84000000000"},
}  # fmt: skip
# These are wrong in all episodes of the file, or in the file as such.
OF_THE_FILE = {("dims", "lerobot"), ("dims", "parquet"), ("size", "parquet"), ("link", "parquet"), ("shape", "parquet")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_wrong_is_named_with_file_episode_and_place(tmp_path, reader, fault):
    make, label = READERS[reader]
    path = make(tmp_path, fault)
    # HDF5 and tar files have no language of their own: without one of the environment's, none is there.
    asked = needs(path, instructions=() if fault == "language" else (TEXT,))
    if fault == "language" and reader in ("hdf5", "tar"):
        label = {"hdf5": "data/demo_0", "tar": "0"}[reader]
    message = refusal(lambda: check_source(asked))
    assert str(path) in message and SAYS[fault][reader] in message, message
    assert (fault, reader) in OF_THE_FILE or label in message, message


@pytest.mark.parametrize("reader", READERS)
def test_the_same_file_without_the_fault_is_taken(tmp_path, reader):
    make, _ = READERS[reader]
    check_source(needs(make(tmp_path, "")))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "short"])
@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "parquet"])
def test_an_import_of_it_leaves_nothing(tmp_path, reader, fault):
    path, text = READERS[reader][0](tmp_path, fault), "" if fault == "language" else TEXT
    before = sorted(tmp_path.rglob("*"))
    assert str(path) in refusal(lambda: import_episodes(path, tmp_path / "out.parquet", ImportOptions(text)))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pipe_in_a_folder_of_trajectory_files_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    assert "is no regular file" in refusal(lambda: check_source(needs(tmp_path)))
