"""A folder of trajectory files is a data set: what many writers add is there as a whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from tests.support.foreign_files import write_hdf5
from tests.support.hostile_files import refusal
from tests.support.stored_episodes import assert_same, sound
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import UNFINISHED, files_of, load_data, part_writer, provenance_of
from wmpo_ray.data.episodes import concatenate_episodes
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.exchange.recorded_source import SourceNeeds, check_source
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.file_facts import facts_of, problems_of
from wmpo_ray.data.store import load_episodes, save_episodes

REAL, IMAGINED = Provenance(origin="real", made_by="expert"), Provenance(origin="imagined", made_by="policy")
WRITER = """
import sys, time
from pathlib import Path
from tests.support.stored_episodes import sound
from wmpo_ray.data import store
from wmpo_ray.data.data_set import part_writer

folder, first, parts, dies = Path(sys.argv[1]), *map(int, sys.argv[2:])
store.ROW_GROUP_BYTES = 1  # so that a part is begun on the disk with its first episode
for seed in range(first, first + parts):
    with part_writer(folder) as writer:
        writer.append(sound(seed=seed))
        if dies and seed == first + parts - 1:
            print("in the middle", flush=True)
            time.sleep(600)
"""


def append(folder: Path, seed: int, provenance: Provenance | None = None, **changes) -> None:
    with part_writer(folder, provenance) as writer:
        writer.append(replace(sound(seed=seed), **changes))


def seeds(episodes) -> set[int]:
    return set(episodes.seeds.tolist())


def test_writers_at_once_and_one_that_is_killed_leave_whole_parts_only(tmp_path):
    folder, started = tmp_path / "set", []
    append(folder, 0)
    for number, dies in ((10, 0), (20, 0), (30, 1)):
        command = [sys.executable, "-c", WRITER, folder, str(number), "3", str(dies)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    *others, killed = started
    assert killed.stdout is not None and "in the middle" in killed.stdout.readline()
    while any(process.poll() is None for process in others):
        assert len(load_data(folder)) % 6 == 0, "whole parts, at any time"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [process.wait() for process in others] == [0, 0]
    whole = {0, *range(10, 13), *range(20, 23), 30, 31}
    episodes = load_data(folder)
    assert seeds(episodes) == {each for seed in whole for each in seeds(sound(seed=seed))}
    assert problems_of(folder) == [] and len(list((folder / UNFINISHED).iterdir())) == 1
    for rows in (pd.read_parquet(folder), pyarrow.dataset.dataset(folder).to_table().to_pandas()):
        assert set(rows["seed"]) == seeds(episodes) and len(rows) == 6 * len(whole)
    append(folder, 40)
    assert len(files_of(folder)) == len(whole) + 1


def test_the_episodes_of_a_folder_are_those_of_its_files_in_order(tmp_path):
    for seed in range(3):
        append(tmp_path / "set", seed, REAL)
    assert_same(load_data(tmp_path / "set"), concatenate_episodes([sound(seed=seed) for seed in range(3)]))
    assert provenance_of(tmp_path / "set") == REAL
    save_episodes(tmp_path / "one", load_data(tmp_path / "set"), REAL)
    one, all_of_them = facts_of(tmp_path / "one"), facts_of(tmp_path / "set")
    assert all_of_them == replace(one, num_files=3, statistics_stored=False)
    export_robomimic(tmp_path / "set", tmp_path / "a.hdf5")
    import_episodes(tmp_path / "a.hdf5", tmp_path / "back")
    assert load_episodes(tmp_path / "back").instructions == load_data(tmp_path / "set").instructions


def test_what_failed_leaves_nothing(tmp_path):
    append(tmp_path / "set", 0)
    with pytest.raises(RuntimeError), part_writer(tmp_path / "set") as writer:
        writer.append(sound())
        raise RuntimeError
    with pytest.raises(ValueError, match="no episodes"), part_writer(tmp_path / "set"):
        pass
    assert len(files_of(tmp_path / "set")) == 1 and not list((tmp_path / "set" / UNFINISHED).iterdir())


def test_parts_of_other_shapes_are_refused_and_shorter_ones_get_room(tmp_path):
    folder = tmp_path / "set"
    append(folder, 0)
    wide = np.zeros((6, 4, 3), np.float32)
    assert "action dimensions: 3, those of" in refusal(lambda: append(folder, 1, actions=wide))
    small = np.zeros((6, 5, 4, 4, 3), np.uint8)
    assert "frames of shape (4, 4, 3), those of" in refusal(lambda: append(folder, 1, frames=small))
    short = sound(seed=2)
    short = replace(
        short, frames=short.frames[:, :3], actions=short.actions[:, :2], lengths=np.minimum(short.lengths, 2)
    )
    with part_writer(folder) as writer:
        writer.append(short)
    episodes = load_data(folder)
    assert episodes.actions.shape == (12, 4, 2) and episodes.frames.shape[:2] == (12, 5)
    assert np.array_equal(episodes.frames[6:, :3], short.frames) and not episodes.actions[6:, 2:].any()
    save_episodes(folder / "z.parquet", replace(sound(), actions=wide))
    for problem in (problems_of(folder)[0], refusal(lambda: load_data(folder))):
        assert str(folder / "z.parquet") in problem and "action dimensions: 3" in problem


def test_origins_that_differ_are_named(tmp_path):
    append(tmp_path / "set", 0, REAL)
    append(tmp_path / "set", 1, IMAGINED)
    found = provenance_of(tmp_path / "set")
    assert found.origin == "unknown" and found.notes == ("the 2 files are not all of one origin",)
    append(tmp_path / "other", 0, REAL)
    append(tmp_path / "other", 1, REAL.model_copy(update={"versions": {"mujoco": "3"}}))
    assert provenance_of(tmp_path / "other").origin == "real"


def test_imports_are_added_and_a_folder_is_a_source(tmp_path):
    for name in "ab":
        path = write_hdf5(tmp_path / f"{name}.hdf5")
        import_episodes(path, tmp_path / "set", ImportOptions("push"), append=True)
    assert len(load_data(tmp_path / "set")) == 6
    assert "need no import" in refusal(lambda: import_episodes(tmp_path / "set", tmp_path / "out"))
    needs = SourceNeeds("demos.source", str(tmp_path / "set"), "demos.num_trajectories", 6, (8, 6, 3), 7, ("push",), 8, 2,
                        10**6, False, "", False)  # fmt: skip
    check_source(needs)
    assert "holds 6 episodes" in refusal(lambda: check_source(needs._replace(num_episodes=7)))


def test_a_folder_without_trajectory_files_and_a_damaged_part_are_named(tmp_path):
    (tmp_path / "set").mkdir()
    assert "is a folder without trajectory files" in refusal(lambda: load_data(tmp_path / "set"))
    append(tmp_path / "set", 0)
    (tmp_path / "set" / "b.parquet").write_bytes(b"hello")
    assert [str(tmp_path / "set" / "b.parquet") in problem for problem in problems_of(tmp_path / "set")] == [True]
