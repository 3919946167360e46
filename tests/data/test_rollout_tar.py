"""Rollouts of the reference implementation: what comes in, and what is refused by name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.foreign_files import npy_bytes, rollout, write_tar
from tests.support.hostile_files import Code, npy, refusal
from wmpo_ray.data.about import about_of
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.file_facts import problems_of
from wmpo_ray.data.store import load_episodes

TEXT = ImportOptions(instruction="insert the nut")


def refused(path: Path, match: str, options: ImportOptions = TEXT) -> None:
    """One line that names the file; nothing is written."""
    message = refusal(lambda: import_episodes(path, path.with_suffix(".parquet"), options))
    assert str(path) in message and match in message, message
    assert [each.name for each in path.parent.iterdir() if each != path] == []


def test_rollouts_come_in_with_their_frames_to_the_finish(tmp_path):
    good, bad = rollout(0), rollout(1, steps=7, complete=False, finish=0)
    path = write_tar(tmp_path / "a.tar", {"shard/b": good, "a": bad})
    done = import_episodes(path, tmp_path / "a.parquet", TEXT)
    episodes = load_episodes(tmp_path / "a.parquet")
    assert (done.num_episodes, done.num_successes) == (2, 1) and problems_of(tmp_path / "a.parquet") == []
    assert episodes.success.tolist() == [True, False] and episodes.lengths.tolist() == [4, 7]
    for i, members in enumerate((good, bad)):
        video, actions = (np.load(io.BytesIO(members[name])) for name in ("video.npy", "action.npy"))
        assert np.array_equal(episodes.frames[i, : episodes.lengths[i] + 1], video[: episodes.lengths[i] + 1])
        assert np.array_equal(episodes.actions[i, : len(actions)], actions)
    assert episodes.instructions == ("insert the nut",) * 2 and (episodes.seeds < 0).all()
    assert done.notes == ("frames after the first success are left out (1 episode)",)
    assert about_of(tmp_path / "a.parquet").provenance.made_by == "a.tar"


def test_other_members_are_passed_over_and_fortran_order_is_read(tmp_path):
    video = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (6, 8, 6, 3), np.uint8))
    members = rollout() | {"video.npy": npy_bytes(video), "txt": b"hello"}
    import_episodes(write_tar(tmp_path / "a.tar", {"a": members}), tmp_path / "a.parquet", TEXT)
    assert np.array_equal(load_episodes(tmp_path / "a.parquet").frames[0], video[[0, 1, 2, 3, 4, 4]])


def meta(**facts: object) -> bytes:
    return json.dumps({"complete": True, "finish_step": 4, "unique_id": "a"} | facts).encode()


def actions(shape: tuple[int, ...] = (5, 7), dtype: str = "f4", **values: float) -> bytes:
    array = np.zeros(shape, dtype)
    array.flat[-1:] = values.get("last", 0)
    return npy_bytes(array)


WRONG = {
    "no language": ({}, "no instruction; give it with --instruction"),
    "another dimension": ({"action_npy": actions((5, 6))}, "b: actions of 6 dimensions, those of a have 7"),
    "fewer frames": ({"action_npy": actions((6, 7))}, "b: 6 frames for 6 actions"),
    "not a number": ({"action_npy": actions(last=np.nan)}, "b: the action of step 4, dimension 6, is nan"),
    "out of range": ({"action_npy": actions(last=-2)}, "b: the action of step 4, dimension 6, is -2"),
    "whole numbers": ({"action_npy": actions(dtype="i4")}, "the actions are int32"),
    "another size": ({"video_npy": npy_bytes(np.zeros((6, 9, 6, 3), np.uint8))}, "b: frames of 9 x 6 pixels"),
    "floats": ({"video_npy": npy_bytes(np.zeros((6, 8, 6, 3), np.float32))}, "the video is float32"),
    "no step": ({"video_npy": npy_bytes(np.zeros((1, 8, 6, 3), np.uint8)), "action_npy": actions((0, 7))}, "0 steps"),
    "not done": ({"meta_json": meta(complete="yes")}, 'complete = "yes"'),
    "late": ({"meta_json": meta(finish_step=6)}, "finish_step = 6"),
    "at once": ({"meta_json": meta(finish_step=0)}, "finish_step = 0"),
    "broken": ({"meta_json": b"{"}, "b.meta.json is damaged"),
    "no object": ({"meta_json": b"[]"}, "is no JSON object"),
    "long": ({"meta_json": b" " * 300_000}, "300000 bytes"),
    "huge": ({"video_npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 6, 3), }", b"")}, "holds 0"),
    "negative": ({"video_npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -144), }", b"a" * 144)}, "claims"),
    "no array": ({"video_npy": b"hello"}, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_with_file_and_rollout(tmp_path, name):
    changes, match = WRONG[name]
    path = write_tar(tmp_path / "a.tar", {"a": rollout(0), "b": rollout(1, **changes)})
    refused(path, match, TEXT if changes else ImportOptions())


def test_a_rollout_without_all_of_its_members_is_named(tmp_path):
    members = rollout()
    del members["meta.json"]
    refused(write_tar(tmp_path / "a.tar", {"b": members}), "b.meta.json is missing")


def test_a_pickled_array_is_never_unpickled(tmp_path):
    trace = tmp_path / "trace"
    pickled = npy_bytes(np.array([Code(trace)], object), allow_pickle=True)
    refused(write_tar(tmp_path / "a.tar", {"b": rollout(video_npy=pickled)}), "dtype object")
    assert not trace.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.video.npy")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "a.tar", "only plain files are read")


def test_names_that_lead_out_of_a_folder_make_no_file(tmp_path):
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in" / "a.tar", {"../b": rollout(), "/c": rollout(1)})
    assert import_episodes(path, tmp_path / "in" / "a.parquet", TEXT).num_episodes == 2
    assert [each.name for each in tmp_path.iterdir()] == ["in"] and len(list((tmp_path / "in").iterdir())) == 2


def test_the_same_member_twice_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": rollout()})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.meta.json"))
    refused(path, "stands twice")


def test_a_truncated_archive_is_named_wherever_it_ends(tmp_path):
    content = write_tar(tmp_path / "a.tar", {"a": rollout(), "b": rollout(1)}).read_bytes()
    end = len(content.rstrip(b"\0"))
    for stop in range(600, end, 331):
        (tmp_path / "a.tar").write_bytes(content[:stop])
        refused(tmp_path / "a.tar", "")


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": rollout(), "b": rollout(1)})
    with tarfile.open(path) as archive:
        header = archive.getmember("b.video.npy").offset
    content = bytearray(path.read_bytes())
    content[header + 150] ^= 1  # its checksum
    path.write_bytes(bytes(content))
    refused(path, "damaged or cut off at byte")


def test_a_tar_file_has_no_camera_to_choose(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": rollout()})
    refused(path, "--image-key front: ", ImportOptions("a", "front"))
