"""Data sets in LeRobot's layout, version 3, read: a folder of Parquet files with a row for each frame.

`meta/info.json` has the features, `meta/episodes/*/*.parquet` a row for each episode (where its frames stand, its tasks),
`data/chunk-XXX/file-XXX.parquet` the frames: `action` and images as struct{bytes, path}. Cameras that are stored as mp4
videos need a decoder, which this program does not have.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import read_bytes, regular_file
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.column_metadata import open_all_columns
from wmpo_ray.data.exchange.recording import (
    MAX_EPISODE_BYTES,
    MAX_EPISODES,
    MAX_JSON_BYTES,
    MAX_SIDE,
    MAX_STEPS,
    EpisodeReader,
    EpisodeSize,
    ImportOptions,
    Recording,
    json_object,
)

INFO, EPISODES, DATA = "meta/info.json", "meta/episodes", "data/chunk-{:03d}/file-{:03d}.parquet"
PLACES = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index")
OUTCOMES = ("next.success", "next.reward")  # the first that is there decides
MAX_TABLE_BYTES = 2**28  # of the columns that say where episodes stand
PICTURES = ("PNG", "JPEG")
NO_LAST_FRAME = "the last action is dropped: the frame after it is not there"
CUT = "frames after the first success are left out"
ASSUMED = "neither next.success nor next.reward: taken for a success, as a demonstration is"
BAD_PICTURE = (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError)


class _Place(NamedTuple):
    episode: int
    num_rows: int
    file: Path
    first_index: int  # of its rows, counted over the whole data set
    task: object


class LerobotReader(EpisodeReader):
    def __init__(self, path: Path, options: ImportOptions):
        super().__init__(path, options)
        self._root = path.parent.parent if path.is_file() else path
        info = self._root / INFO
        self._info = json_object(read_bytes(info, MAX_JSON_BYTES), str(info))
        version, features = self._info.get("codebase_version"), self._info.get("features")
        if not isinstance(version, str) or not version.startswith("v3.") or not isinstance(features, dict):
            raise UserError(f"{info}: codebase_version = {shown(version)}; read is version 3 with its features")
        self._key = self._camera(features)
        self._shape = _image_shape(info, features[self._key])
        self._places = self._read_places()
        self._file: tuple[Path, pq.ParquetFile] | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file[1].close()

    @property
    def provenance(self) -> Provenance:
        robot = self._info.get("robot_type")
        settings = {"robot_type": robot, "fps": self._info.get("fps")}
        return Provenance(made_by=self._root.name, environment={key: value for key, value in settings.items() if value})

    def _camera(self, features: dict[str, Any]) -> str:
        kinds = {key: each.get("dtype") for key, each in features.items() if isinstance(each, dict)}
        images = [key for key, kind in kinds.items() if kind == "image"]
        chosen = self.options.image_key or (images[0] if len(images) == 1 else "")
        if kinds.get(chosen) == "video" or (not images and not chosen and "video" in kinds.values()):
            name = chosen or next(key for key, kind in kinds.items() if kind == "video")
            raise UserError(
                f"{self.path}: {name} is stored as mp4 videos, which need a decoder that this program does not have; write "
                "the data set with images instead (use_videos=False)"
            )
        if chosen not in images:
            raise UserError(
                f"{self.path}: no camera {chosen!r}; "
                + (
                    f"there are {', '.join(images[:10])}: choose one with {self.options.image_key_knob}"
                    if images
                    else "there are no images"
                )
            )
        return chosen

    @contextmanager
    def _explained(self, file: Path) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.path}: {file} is damaged: {reason[:300]}") from error

    def _read_places(self) -> list[_Place]:
        found: list[_Place] = []
        files = sorted((self._root / EPISODES).glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.path} has no {EPISODES}/*/*.parquet")
        for path in files:
            with self._explained(path), pq.ParquetFile(regular_file(path, None)) as file:
                self._check_columns(path, file, (*PLACES, "tasks"), MAX_TABLE_BYTES)
                table = file.read(columns=[*PLACES, "tasks"])
                table.validate(full=True)
            for row in table.to_pylist():
                found.append(self._place(path, row))
                if len(found) > MAX_EPISODES:
                    raise UserError(f"{self.path} holds more than {MAX_EPISODES} episodes")
        return sorted(found, key=lambda place: place.episode)

    def _place(self, path: Path, row: dict[str, Any]) -> _Place:
        numbers = [row[name] for name in PLACES]
        if not all(isinstance(number, int) and 0 <= number < 2**53 for number in numbers):
            raise UserError(f"{self.path}: {path} has an episode of {numbers}; whole numbers from 0 on are expected")
        episode, length, chunk, file, first = numbers
        tasks = row["tasks"]
        task = tasks[0] if isinstance(tasks, list) and tasks else ""
        return _Place(episode, length, self._root / DATA.format(chunk, file), first, task)

    def _check_columns(self, path: Path, file: pq.ParquetFile, names: Sequence[str], max_bytes: int) -> None:
        """Refuse a table without these columns, or with more bytes in them than `max_bytes` for each row group."""
        if missing := [name for name in names if name not in file.schema_arrow.names]:
            raise UserError(f"{self.path}: {path} has no column {missing[0]}")
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        places = [i for i, leaf in enumerate(paths) if leaf.startswith(tuple(names))]
        open_all_columns(path, file)
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            wanted = [group.column(i) for i in places]
            num_bytes = sum(column.total_uncompressed_size for column in wanted)
            # A value in a dictionary is there once, and in memory as often as rows name it.
            repeated = max(
                (c.total_uncompressed_size * c.num_values for c in wanted if c.has_dictionary_page), default=0
            )
            if num_bytes > max_bytes or repeated > 2**36 or group.num_rows > MAX_EPISODES:
                raise UserError(
                    f"{self.path}: {path} declares {num_bytes} bytes in a row group, at most {max_bytes} are read"
                )

    def sizes(self) -> Sequence[EpisodeSize]:
        dims = self._info["features"].get("action", {})
        shape = dims.get("shape") if isinstance(dims, dict) else None
        if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
            raise UserError(f"{self.path}: the feature action has shape {shown(shape)}; one axis is expected")
        return [EpisodeSize(f"episode {p.episode}", p.num_rows - 1, self._shape, shape[0]) for p in self._places]

    def read(self, index: int) -> Recording:
        place, label = self._places[index], f"episode {self._places[index].episode}"
        where = f"{self.path}, {label}"
        if not 2 <= place.num_rows <= MAX_STEPS + 1:
            raise UserError(f"{where}: {place.num_rows} rows; an episode has 2 to {MAX_STEPS + 1}")
        with self._explained(place.file):
            table = self._rows(where, place)
            actions = _numbers(where, table["action"].combine_chunks())
            success, end = self._outcome(table, place.num_rows)
            length = min(end, place.num_rows - 1)
            pictures = table[self._key][: length + 1].to_pylist()
        frames = np.empty((length + 1, *self._shape), np.uint8)
        for i, picture in enumerate(pictures):
            frames[i] = _decoded(f"{where}, frame {i}", picture, self._shape)
        self.noted[NO_LAST_FRAME] += length < end or end == place.num_rows
        self.noted[CUT] += length < place.num_rows - 1
        return Recording(frames, actions[:-1], length, success, self.instruction_of(label, place.task))

    def _rows(self, where: str, place: _Place) -> pa.Table:
        """The rows of an episode, from the row groups that hold them."""
        file = self._open(place.file)
        outcomes = [name for name in OUTCOMES if name in file.schema_arrow.names]
        starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))])
        first = place.first_index - self._first_index
        if not 0 <= first <= first + place.num_rows <= starts[-1]:
            raise UserError(f"{where}: its rows {first} to {first + place.num_rows} are not all in {place.file}")
        groups = [i for i, (a, b) in enumerate(pairwise(starts)) if a < first + place.num_rows and b > first]
        columns = ["action", self._key, "episode_index", *outcomes[:1]]
        table = file.read_row_groups(groups, columns=columns).slice(first - int(starts[groups[0]]), place.num_rows)
        table.validate(full=True)
        if set(table["episode_index"].to_pylist()) != {place.episode}:
            raise UserError(f"{where}: its rows in {place.file} belong to other episodes")
        return table

    def _open(self, path: Path) -> pq.ParquetFile:
        if self._file is None or self._file[0] != path:
            self.close()
            file = pq.ParquetFile(regular_file(path, None))
            self._file = (path, file)
            self._check_columns(path, file, ("action", self._key, "episode_index", "index"), MAX_EPISODE_BYTES)
            if not file.metadata.num_row_groups:
                raise UserError(f"{self.path}: {path} has no rows")
            found = file.read_row_group(0, columns=["index"])["index"][:1].to_pylist()
            if not found or not isinstance(found[0], int):
                raise UserError(f"{self.path}: {path} has no row with an index")
            self._first_index = found[0]
        return self._file[1]

    def _outcome(self, table: pa.Table, num_rows: int) -> tuple[bool, int]:
        """(success, steps until it or until the end)."""
        name = next((name for name in OUTCOMES if name in table.column_names), None)
        if name is None:
            self.noted[ASSUMED] += 1
            return True, num_rows
        values = table[name].to_pylist()
        if not all(isinstance(value, bool | int | float) for value in values):
            raise UserError(f"{self.path}: {name} holds values that are no numbers")
        hits = [step for step, value in enumerate(values) if value > 0]
        return (True, hits[0] + 1) if hits else (False, num_rows)


def _image_shape(info: Path, feature: dict[str, Any]) -> tuple[int, int, int]:
    """(H, W, 3) of a feature, which may say it with the channels first."""
    shape = feature.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(isinstance(n, int) and 1 <= n <= MAX_SIDE for n in shape)
    ):
        raise UserError(f"{info}: images of shape {shown(shape)}; three sizes up to {MAX_SIDE} are expected")
    height, width, channels = shape if shape[2] == 3 else (*shape[1:], shape[0])
    return height, width, channels


def _numbers(where: str, column: pa.Array) -> np.ndarray:
    """[n, D] of a column of lists that are all as long."""
    lengths = set(column.value_lengths().to_pylist()) if pa.types.is_list(column.type) else set()
    lengths |= {column.type.list_size} if pa.types.is_fixed_size_list(column.type) else set()
    flat = column.flatten() if len(lengths) == 1 and column.null_count == 0 else None
    if flat is None or flat.null_count or not pa.types.is_floating(flat.type) or None in lengths:
        raise UserError(f"{where}: its actions are {column.type} of lengths {sorted(map(str, lengths))}")
    return np.asarray(flat.cast(pa.float64())).reshape(len(column), -1)


def _decoded(where: str, picture: object, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of an image; its size is compared before it is decoded."""
    content = picture.get("bytes") if isinstance(picture, dict) else None
    if not isinstance(content, bytes):
        raise UserError(f"{where}: no image in the table; images in files of their own are not read")
    try:
        with Image.open(io.BytesIO(content), formats=PICTURES) as image:
            if (image.height, image.width) != shape[:2]:
                raise UserError(
                    f"{where}: an image of {image.height} x {image.width} pixels, {INFO} says {shape[0]} x {shape[1]}"
                )
            return np.asarray(image.convert("RGB"))
    except BAD_PICTURE as error:
        raise UserError(f"{where}: the image is damaged: {str(error)[:200]}") from error
