"""`wmpo data`: tables, pictures, exit codes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.foreign_files import write_hdf5
from tests.support.stored_episodes import sound
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.store import save_episodes


def wmpo(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def stored(tmp_path):
    origin = Provenance(origin="real", made_by="expert", environment={"kind": "pocket"}, notes=("a note",))
    save_episodes(tmp_path / "a.parquet", sound(), origin)
    return tmp_path / "a.parquet"


def test_info_shows_sizes_success_instructions_origin_and_statistics(stored):
    result = wmpo("info", stored)
    assert result.exit_code == 0, result.output
    episodes = sound()
    texts = (str(stored), "5 x 6 pixels", f"{episodes.success.mean():.1%}", "put it in pocket 0: 1", "real", "expert")
    for text in (*texts, "a note", "q01", f"{episodes.lengths.sum()} actions, stored in the file"):
        assert text in result.output


def test_check_names_what_is_wrong_and_says_so_by_its_exit_code(stored, tmp_path):
    assert wmpo("check", stored).exit_code == 0
    episodes = sound()
    episodes.actions[1, 0, 0] = 7
    save_episodes(tmp_path / "b.parquet", episodes)
    result = wmpo("check", stored, tmp_path / "b.parquet", tmp_path / "none.parquet")
    assert result.exit_code == 1
    assert f"{stored}: ok" in result.output and "none.parquet is missing" in result.output
    assert "b.parquet, row 1: the action of step 0, dimension 0, is 7" in result.output


def test_show_writes_a_sheet_of_frames_and_a_video(stored, tmp_path):
    assert wmpo("show", stored, "--out", tmp_path / "a.png", "--episodes", 4, "--frames", 3).exit_code == 0
    sheet = np.asarray(Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())))
    frame = sound().frames[0, 0].repeat(19, 0).repeat(19, 1)  # 5 rows to about 96
    assert np.array_equal(sheet[22 : 22 + 95, 6 : 6 + 114], frame), "the first frame of the first episode"
    assert sheet.shape[:2] == (6 + 4 * (16 + 95 + 6), 6 + 3 * (114 + 6))
    assert wmpo("show", stored, "--out", tmp_path / "a.webp", "--video").exit_code == 0
    with Image.open(tmp_path / "a.webp") as video:
        assert video.n_frames == sound().lengths.max() + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.webp"], "add --video"),
        (["--out", "a.png", "--video"], "leave out --video"),
        (["--out", "/no/a.png"], "no folder /no"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_line(stored, options, message):
    result = wmpo("show", stored, *options)
    assert result.exit_code == 2 and message in result.output


def test_export_and_import_say_what_the_other_format_cannot_hold(stored, tmp_path):
    result = wmpo("export", stored, "--out", tmp_path / "a.hdf5")
    assert (
        result.exit_code == 0 and "6 episodes written" in result.output and "not in it: actions after" in result.output
    )
    result = wmpo("import", tmp_path / "a.hdf5", "--out", tmp_path / "b.parquet")
    assert result.exit_code == 0 and "6 episodes" in result.output, result.output
    assert "a note" in wmpo("info", tmp_path / "b.parquet").output
    result = wmpo("import", write_hdf5(tmp_path / "c.hdf5"), "--out", tmp_path / "c.parquet", "--instruction", "insert")
    assert result.exit_code == 0 and "3 of them successful" in result.output and "states is left out" in result.output


def test_an_import_that_fails_is_one_line_and_leaves_the_file_that_was_there(stored, tmp_path):
    before = stored.read_bytes()
    result = wmpo("import", write_hdf5(tmp_path / "c.hdf5"), "--out", stored)
    assert result.exit_code == 2 and "data/demo_0: no instruction; give it with --instruction" in result.output
    assert stored.read_bytes() == before and not list(tmp_path.glob("*.tmp-*"))
    for options in (("import", stored, "--out", stored), ("export", stored, "--out", stored)):
        result = wmpo(*options)
        assert result.exit_code == 2 and "is the file to read; name another file" in result.output


def test_a_lerobot_folder_goes_out_and_comes_in(stored, tmp_path):
    result = wmpo("export", stored, "--out", tmp_path / "set", "--layout", "lerobot", "--fps", 20)
    assert result.exit_code == 0 and "not in it: start states" in result.output, result.output
    result = wmpo("import", tmp_path / "set", "--out", tmp_path / "b.parquet")
    assert result.exit_code == 0 and "6 episodes" in result.output, result.output
    again = wmpo("export", stored, "--out", tmp_path / "set", "--layout", "lerobot")
    assert again.exit_code == 2 and "is a folder; name another file" in again.output
    other = wmpo("export", stored, "--out", tmp_path / "c", "--layout", "rlds")
    assert other.exit_code == 2 and "known are robomimic, lerobot and rerun" in other.output


def test_files_are_added_to_a_folder_which_is_read_as_a_file_is(stored, tmp_path):
    path, folder = write_hdf5(tmp_path / "a.hdf5"), tmp_path / "set"
    for _ in range(2):
        result = wmpo("import", path, "--out", folder, "--append", "--instruction", "push")
        assert result.exit_code == 0 and f"3 episodes, 3 of them successful, written to {folder}" in result.output
    result = wmpo("info", folder)
    assert result.exit_code == 0 and "6 in 2 files" in result.output and "push: 6" in result.output
    assert f"{folder}: ok" in wmpo("check", folder).output
    assert wmpo("show", folder, "--out", tmp_path / "a.png").exit_code == 0
    assert wmpo("export", folder, "--out", tmp_path / "b.hdf5").exit_code == 0
    result = wmpo("import", path, "--out", stored, "--append")
    assert result.exit_code == 2 and "is a file; --append adds a file to a folder" in result.output
