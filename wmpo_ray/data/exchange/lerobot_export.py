"""Trajectory files as data sets in LeRobot's layout, version 3, with images in the tables instead of videos."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import QUANTILES
from wmpo_ray.data.data_set import load_data
from wmpo_ray.data.exchange.lerobot import DATA, EPISODES, INFO
from wmpo_ray.data.file_facts import facts_of

VERSION = "v3.0"
FILE_BYTES = 100 * 2**20  # of a data file, from which on the next one begins
FILES_PER_CHUNK = 1000
IMAGE_KEY = "observation.images.main"
OTHER_COLUMNS = {
    "action": None,  # as many numbers as the robot has
    **dict.fromkeys(("timestamp", "next.reward"), pa.float32()),
    **dict.fromkeys(("next.done", "next.success"), pa.bool_()),
    **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), pa.int64()),
}
# What the layout has no place for.
NOT_EXPORTED = (
    "start states, failure modes, corrections, provenance, and actions after an episode's end; each episode has one more "
    "row, with the frame after its last action and that action again"
)


def export_lerobot(path: Path, out: Path, image_key: str = "", fps: int = 10) -> int:
    """Write the episodes of a trajectory file, or of a folder of them, to the folder `out`; returns how many there are.

    `fps`: actions a second, which a trajectory file does not say; times are made of it. Raises UserError for a file that
    cannot be read, an episode without a step, and on a full disk.
    """
    episodes, key = load_data(path), image_key or IMAGE_KEY
    if empty := np.flatnonzero(episodes.lengths == 0).tolist():
        raise UserError(f"{path}, row {empty[0]}: an episode without a step; the layout has no place for one")
    if key in OTHER_COLUMNS:
        raise UserError(f"--image-key {key}: LeRobot has a column of that name; choose another, such as {IMAGE_KEY}")
    tasks = list(dict.fromkeys(episodes.instructions))
    with atomic_directory(out) as folder:
        writer = _DataWriter(folder, key, fps, tasks, episodes.actions.shape[2])
        for row in range(len(episodes)):
            writer.append(episodes, row)
        writer.close()
        _write_table(folder / EPISODES / "chunk-000" / "file-000.parquet", pa.Table.from_pylist(writer.places))
        index = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
        _write_table(folder / "meta" / "tasks.parquet", index.replace_schema_metadata(_index_of_tasks()))
        _write_json(folder / INFO, _info(episodes, key, fps, len(tasks), writer.num_rows))
        statistics = facts_of(path).statistics
        numbers = {**statistics.model_dump(exclude={"num_actions"}), "count": [statistics.num_actions]}
        _write_json(folder / "meta" / "stats.json", {"action": numbers, key: _statistics_of(writer.histogram)})
    return len(episodes)


class _DataWriter:
    """Writes the rows of episodes, a row group each, into as many files as there have to be."""

    def __init__(self, folder: Path, key: str, fps: int, tasks: list[str], action_dims: int):
        self._folder, self._key, self._fps, self._tasks = folder, key, fps, tasks
        self.num_rows, self.places = 0, list[dict[str, Any]]()
        self.histogram = np.zeros((3, 256), np.int64)  # pixels of each channel and value
        self._number, self._num_bytes, self._file = -1, FILE_BYTES, None  # the first episode begins a file
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self._schema = pa.schema(
            [
                (key, picture),
                ("action", pa.list_(pa.float32(), action_dims)),
                *((name, kind) for name, kind in OTHER_COLUMNS.items() if kind is not None),
            ]
        )

    def append(self, episodes: Episodes, row: int) -> None:
        if self._num_bytes >= FILE_BYTES:
            self._next_file()
        assert self._file is not None
        columns = self._columns(episodes, row)
        count = len(columns["index"])
        self._num_bytes += sum(len(picture["bytes"]) for picture in columns[self._key])
        self._file.write_table(pa.Table.from_pydict(columns, schema=self._schema))
        chunk, number = divmod(self._number, FILES_PER_CHUNK)
        place = {"episode_index": row, "tasks": [episodes.instructions[row]], "length": count}
        place |= {"data/chunk_index": chunk, "data/file_index": number}
        self.places.append(place | {"dataset_from_index": self.num_rows, "dataset_to_index": self.num_rows + count})
        self.num_rows += count
        pixels = episodes.frames[row, :count].reshape(-1, 3)
        self.histogram += [np.bincount(channel, minlength=256) for channel in pixels.T]

    def _columns(self, episodes: Episodes, row: int) -> dict[str, Any]:
        length, success = int(episodes.lengths[row]), bool(episodes.success[row])
        count = length + 1
        step = np.arange(count)
        reached = (step >= length - 1) & success
        actions = episodes.actions[row, np.minimum(step, length - 1)]
        return {
            self._key: [{"bytes": png_of(frame), "path": None} for frame in episodes.frames[row, :count]],
            "action": list(actions),
            "timestamp": (step / self._fps).astype(np.float32),
            "next.reward": reached.astype(np.float32),
            "next.done": step >= length - 1,
            "next.success": reached,
            "frame_index": step,
            "episode_index": np.full(count, row),
            "index": self.num_rows + step,
            "task_index": np.full(count, self._tasks.index(episodes.instructions[row])),
        }

    def _next_file(self) -> None:
        self.close()
        self._number, self._num_bytes = self._number + 1, 0
        path = self._folder / DATA.format(*divmod(self._number, FILES_PER_CHUNK))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = pq.ParquetWriter(path, self._schema, use_dictionary=False)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def png_of(frame: np.ndarray) -> bytes:
    """A frame [H, W, 3] uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _statistics_of(histogram: np.ndarray) -> dict[str, Any]:
    """Of the pixels [3, 256] of each channel, from 0 to 1, shaped as LeRobot keeps them: [3, 1, 1]."""
    count, levels = histogram[0].sum(), np.arange(256) / 255
    mean = histogram @ levels / count
    found = {"mean": mean, "std": np.sqrt(np.maximum(histogram @ levels**2 / count - mean**2, 0))}
    for name, share in {"min": 0.0, "max": 1.0, "q01": QUANTILES[0], "q99": QUANTILES[1]}.items():
        # The pixel in that place, were they sorted.
        found[name] = levels[(histogram.cumsum(1) <= share * (count - 1)).sum(1)]
    shaped = {name: values.reshape(3, 1, 1).tolist() for name, values in found.items()}
    return {**shaped, "count": [int(count)]}


def _info(episodes: Episodes, key: str, fps: int, num_tasks: int, num_rows: int) -> dict[str, Any]:
    scalars = {"timestamp": "float32", "next.reward": "float32", "next.done": "bool", "next.success": "bool"}
    scalars |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    features: dict[str, Any] = {
        key: {"dtype": "image", "shape": list(episodes.frames.shape[2:]), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [episodes.actions.shape[2]], "names": None},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in scalars.items()},
    }
    return {
        "codebase_version": VERSION,
        "robot_type": "unknown",
        "total_episodes": len(episodes),
        "total_frames": num_rows,
        "total_tasks": num_tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": FILE_BYTES // 2**20,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }


def _index_of_tasks() -> dict[bytes, bytes]:
    """pandas' own metadata: the tasks are the index of the table, as LeRobot looks them up."""
    column = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    about = {"index_columns": ["task"], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
    return {b"pandas": json.dumps(about).encode()}


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))
