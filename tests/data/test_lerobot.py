"""LeRobot's layout, version 3: a round trip, and what is refused by name."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.fuzzed_files import SAMPLES, files_of, mutated
from tests.support.hostile_files import refusal
from tests.support.stored_episodes import make, sound
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.about import statistics_of
from wmpo_ray.data.exchange import lerobot_export
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.exchange.lerobot import ASSUMED
from wmpo_ray.data.exchange.lerobot_export import IMAGE_KEY, export_lerobot
from wmpo_ray.data.file_facts import executed_actions
from wmpo_ray.data.store import load_episodes, save_episodes

FILE, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def exported(tmp_path) -> Path:
    save_episodes(tmp_path / "a.parquet", sound())
    export_lerobot(tmp_path / "a.parquet", tmp_path / "set", fps=20)
    return tmp_path / "set"


def imported(folder: Path, options: ImportOptions | None = None):
    done = import_episodes(folder, folder.parent / "b.parquet", options)
    return done, load_episodes(folder.parent / "b.parquet")


def refused(folder: Path, match: str, options: ImportOptions | None = None) -> None:
    message = refusal(lambda: imported(folder, options))
    assert str(folder) in message and match in message, message
    assert not (folder.parent / "b.parquet").exists() and not list(folder.parent.glob("*.tmp-*"))


def assert_round_trip(found, episodes) -> None:
    assert found.instructions == episodes.instructions
    assert np.array_equal(found.lengths, episodes.lengths) and np.array_equal(found.success, episodes.success)
    for i, length in enumerate(episodes.lengths):
        assert np.array_equal(found.frames[i, : length + 1], episodes.frames[i, : length + 1])
        assert np.array_equal(found.actions[i, :length], episodes.actions[i, :length])
    assert (found.seeds < 0).all() and found.failures == {}


@pytest.mark.parametrize("file_bytes", [1, 10**8])
def test_a_round_trip_keeps_frames_actions_lengths_outcomes_and_instructions(tmp_path, monkeypatch, file_bytes):
    monkeypatch.setattr(lerobot_export, "FILE_BYTES", file_bytes)
    save_episodes(tmp_path / "a.parquet", sound(7, seed=3))
    assert export_lerobot(tmp_path / "a.parquet", tmp_path / "set") == 7
    assert len(list((tmp_path / "set").glob("data/*/*.parquet"))) == (7 if file_bytes == 1 else 1)
    assert_round_trip(imported(tmp_path / "set")[1], sound(7, seed=3))


def test_the_layout_is_that_of_version_3(exported):
    episodes, info = sound(), json.loads((exported / "meta/info.json").read_text())
    rows, places = pq.read_table(exported / FILE).to_pylist(), pq.read_table(exported / EPISODES).to_pylist()
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["total_frames"] == len(rows)
    assert set(info["features"]) == set(rows[0]) and info["features"][IMAGE_KEY]["shape"] == [5, 6, 3]
    assert [place["length"] for place in places] == (episodes.lengths + 1).tolist()
    for place, text in zip(places, episodes.instructions, strict=True):
        own = rows[place["dataset_from_index"] : place["dataset_to_index"]]
        assert {row["episode_index"] for row in own} == {place["episode_index"]} and place["tasks"] == [text]
        assert [row["frame_index"] for row in own] == list(range(place["length"]))
        assert np.allclose([row["timestamp"] for row in own], np.arange(place["length"]) / 20)
    tasks = pd.read_parquet(exported / "meta/tasks.parquet")
    assert list(tasks.index) == list(episodes.instructions) and tasks.loc[episodes.instructions[2]].task_index == 2
    stored = json.loads((exported / "meta/stats.json").read_text())
    assert stored["action"]["q99"] == statistics_of(executed_actions(episodes)).q99
    videos = [video[: n + 1] for video, n in zip(episodes.frames, episodes.lengths, strict=True)]
    pixels = np.concatenate(videos).reshape(-1, 3) / 255
    expected = {"mean": pixels.mean(0), "std": pixels.std(0), "min": pixels.min(0), "max": pixels.max(0)}
    expected |= {name: np.quantile(pixels, q, axis=0, method="lower") for name, q in (("q01", 0.01), ("q99", 0.99))}
    assert stored[IMAGE_KEY]["count"] == [len(pixels)]
    for name, values in expected.items():
        assert np.allclose(stored[IMAGE_KEY][name], values.reshape(3, 1, 1), rtol=1e-9), name


def rewrite(folder: Path, file: str, **columns) -> None:
    table = pq.read_table(folder / file)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, values)
    pq.write_table(table, folder / file)


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_feature(folder: Path, name: str, **changes) -> None:
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={**features, name: {**features[name], **changes}})


def test_without_an_outcome_a_demonstration_is_taken_for_a_success(exported):
    rewrite(exported, FILE, **{"next.success": None, "next.reward": None})
    done, episodes = imported(exported)
    assert episodes.success.all() and any(ASSUMED in note for note in done.notes)


def test_jpeg_images_and_channels_first_are_read(exported):
    def jpeg(picture: dict) -> dict:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture["bytes"])).save(buffer, "JPEG", quality=100, subsampling=0)
        return {"bytes": buffer.getvalue(), "path": None}

    table = pq.read_table(exported / FILE)
    pictures = [jpeg(picture) for picture in table[IMAGE_KEY].to_pylist()]
    rewrite(exported, FILE, **{IMAGE_KEY: pa.array(pictures, table[IMAGE_KEY].type)})
    edit_feature(exported, IMAGE_KEY, shape=[3, 5, 6])
    episodes = imported(exported)[1]
    assert np.abs(episodes.frames[0].astype(int) - sound().frames[0]).mean() < 8


def actions(folder: Path, value: float, dims: int = 2, kind: str = "float") -> pa.Array:
    count = pq.read_metadata(folder / FILE).num_rows
    return pa.array([[0] * (dims - 1) + [value]] * count, pa.list_(pa.type_for_alias(kind), dims))


def picture(folder: Path, content: bytes | None) -> dict[str, pa.Array]:
    column = pq.read_table(folder / FILE)[IMAGE_KEY]
    values = column.to_pylist()
    values[1]["bytes"] = content
    return {IMAGE_KEY: pa.array(values, column.type)}


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


WRONG = {
    "version": (lambda f: edit_info(f, codebase_version="v2.1"), 'codebase_version = "v2.1"'),
    "no features": (lambda f: edit_info(f, features=None), "with its features"),
    "video": (lambda f: edit_feature(f, IMAGE_KEY, dtype="video"), "stored as mp4 videos, which need a decoder"),
    "no images": (lambda f: edit_feature(f, IMAGE_KEY, dtype="float32"), "there are no images"),
    "shape": (lambda f: edit_feature(f, IMAGE_KEY, shape=[10**6, 5, 3]), "images of shape"),
    "no info": (lambda f: (f / "meta/info.json").unlink(), "is missing"),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "has no meta/episodes"),
    "no data": (lambda f: (f / FILE).unlink(), "file-000.parquet is missing"),
    "no column": (lambda f: rewrite(f, FILE, action=None), "has no column action"),
    "dimension": (lambda f: rewrite(f, FILE, action=actions(f, 0, dims=3)), "actions are float64"),
    "whole numbers": (lambda f: rewrite(f, FILE, action=actions(f, 0, kind="int64")), "its actions are fixed_size_list<element: int64>"),
    "not a number": (lambda f: rewrite(f, FILE, action=actions(f, float("nan"))), "episode 0: the action of step 0, dimension 1, is nan"),
    "out of range": (lambda f: rewrite(f, FILE, action=actions(f, 300)), "episode 0: the action of step 0, dimension 1, is 300"),
    "another size": (lambda f: rewrite(f, FILE, **picture(f, png(7, 6))), "frame 1: an image of 7 x 6 pixels"),
    "bomb": (lambda f: rewrite(f, FILE, **picture(f, png(4000, 4000))), "frame 1: an image of 4000 x 4000 pixels"),
    "no picture": (lambda f: rewrite(f, FILE, **picture(f, b"hello")), "frame 1: the image is damaged"),
    "elsewhere": (lambda f: rewrite(f, FILE, **picture(f, None)), "frame 1: no image in the table"),
    "other rows": (lambda f: rewrite(f, EPISODES, dataset_from_index=pa.array([1] * 6)), "belong to other episodes"),
    "too many rows": (lambda f: rewrite(f, EPISODES, length=pa.array([10**4] * 6)), "are not all in"),
    "endless": (lambda f: rewrite(f, EPISODES, length=pa.array([10**12] * 6)), "steps; an episode has 1 to"),
    "negative": (lambda f: rewrite(f, EPISODES, length=pa.array([-1] * 6)), "whole numbers from 0 on"),
    "no language": (lambda f: rewrite(f, EPISODES, tasks=pa.array([[]] * 6, pa.list_(pa.string()))), "no instruction; give it"),
    "no parquet": (lambda f: (f / FILE).write_bytes(b"hello"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(exported, name):
    edit, match = WRONG[name]
    edit(exported)
    refused(exported, match)


def test_another_camera_is_offered_by_name(exported):
    feature = json.loads((exported / "meta/info.json").read_text())["features"]
    edit_info(exported, features={**feature, "observation.images.wrist": feature[IMAGE_KEY]})
    refused(exported, f"there are {IMAGE_KEY}, observation.images.wrist: choose one with --image-key")
    assert imported(exported, ImportOptions(image_key=IMAGE_KEY))[0].num_episodes == 6


def test_an_episode_without_a_step_is_not_exported(tmp_path):
    save_episodes(tmp_path / "a.parquet", replace(make(), lengths=np.array([2, 0, 1])))
    with pytest.raises(UserError, match="row 1: an episode without a step"):
        export_lerobot(tmp_path / "a.parquet", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_image_is_not_called_as_another_column(tmp_path):
    save_episodes(tmp_path / "a.parquet", make())
    for name in ("action", "timestamp", "index"):
        with pytest.raises(UserError, match=f"--image-key {name}: LeRobot has a column of that name"):
            export_lerobot(tmp_path / "a.parquet", tmp_path / "set", name)
    assert not (tmp_path / "set").exists()


def test_metadata_over_which_arrow_would_end_the_process_are_an_error(tmp_path):
    """Found by `make fuzz-readers`: a histogram of a wrong size in the statistics of a column."""
    sample = SAMPLES["lerobot_folder"](tmp_path)
    path = files_of(sample)[1]
    path.write_bytes(mutated(path.read_bytes(), random.Random(952)))
    code = "import sys, pathlib; from wmpo_ray.data.exchange.importing import import_episodes as f; f(*map(pathlib.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, sample, tmp_path / "b"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1 and "UserError" in done.stderr and "is damaged" in done.stderr
