"""A checkpoint comes back as it was saved; damage, a kill or a full disk leaves the one before it whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch

from tests.support.same_bits import assert_same_bits
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import remove_leftovers, sha256_of
from wmpo_ray.runs.checkpoint import load_checkpoint, save_checkpoint

FILES = ("tensors.safetensors", "meta.json", "manifest.json")


def save(root: Path, step: int, keep: int = 2, value: int | None = None) -> Path:
    tensors = {"a": torch.full((3, 5), step if value is None else value), "b": torch.tensor(0.1, dtype=torch.float64)}
    return save_checkpoint(root, step, tensors, {"seed": step, "name": "x"}, keep)


def load(root: Path):
    reports: list[str] = []
    return load_checkpoint(root, reports.append), reports


def steps(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.name != "latest")


def test_there_and_back(tmp_path):
    weight = torch.randn(4, 6)
    tensors = {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "bf16": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(7),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    meta = {"version": 3, "names": ["a", "ü"], "lr": 0.1 + 0.2}
    path = save_checkpoint(tmp_path / "new" / "root", 12, tensors, meta, keep=1)
    found, reports = load(tmp_path / "new" / "root")
    assert found is not None and reports == []
    assert (found.step, found.meta, found.path) == (12, meta, path) and path.name == "step-000012"
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and found.tensors[name].shape == tensor.shape
        assert_same_bits(found.tensors[name], tensor.detach().contiguous())


def test_nothing_saved_means_none(tmp_path):
    assert load(tmp_path) == (None, []) and load(tmp_path / "missing") == (None, [])


def test_the_oldest_beyond_keep_go_and_latest_names_the_newest(tmp_path):
    for step in (1, 2, 10, 1_000_000):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-000010", "step-1000000"]
    assert (tmp_path / "latest").read_text() == "step-1000000"
    assert load(tmp_path)[0].step == 1_000_000


def test_going_back_drops_the_course_that_was_left(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    save(tmp_path, 2, keep=3, value=50)
    found, reports = load(tmp_path)
    assert steps(tmp_path) == ["step-000001", "step-000002"] and reports == []
    assert found.step == 2 and (found.tensors["a"] == 50).all()


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match=r"keep=0.*checkpoint\.keep"):
        save(tmp_path, 1, keep=0)


def test_meta_that_json_cannot_hold_is_refused_and_nothing_changes(tmp_path):
    save(tmp_path, 1)
    for meta in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            save_checkpoint(tmp_path, 2, {}, meta, 2)
    assert steps(tmp_path) == ["step-000001"]


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    save(root, 1)
    save(root, 2)
    return root


def assert_previous_is_used(root: Path, damaged: Path) -> None:
    found, reports = load(root)
    assert found.step == 1 and (found.tensors["a"] == 1).all() and found.meta["seed"] == 1
    assert len(reports) == 1 and str(damaged) in reports[0]


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_noticed_and_the_file_named(two_checkpoints, tmp_path, name):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    path = root / "step-000002" / name
    content = path.read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        found, reports = load(root)
        assert found.step == 1 and len(reports) == 1
        # A flip in the manifest may show as a mismatch of the file that it describes.
        assert str(path) in reports[0] or (name == "manifest.json" and str(path.parent) in reports[0])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rest", [0, 1, -1])
def test_a_truncated_file_is_named(two_checkpoints, tmp_path, name, rest):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    path = root / "step-000002" / name
    path.write_bytes(path.read_bytes()[:rest])
    assert_previous_is_used(root, path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(two_checkpoints, tmp_path, name):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    path = root / "step-000002" / name
    path.unlink()
    assert_previous_is_used(root, path)
    path.mkdir()
    assert_previous_is_used(root, path)


def test_a_missing_newest_checkpoint_is_named(two_checkpoints, tmp_path):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    shutil.rmtree(root / "step-000002")
    assert_previous_is_used(root, root / "step-000002")


def test_a_renamed_checkpoint_is_not_taken_for_a_later_step(two_checkpoints, tmp_path):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    (root / "step-000002").rename(root / "step-000009")
    found, reports = load(root)
    assert found.step == 1 and any("belongs to step 2" in report for report in reports)


@pytest.mark.parametrize("content", [None, b"", b"step-00000\x32\xff", b"../../etc"])
def test_a_damaged_latest_is_named_and_the_newest_checkpoint_used(two_checkpoints, tmp_path, content):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    (root / "latest").unlink()
    if content is not None:
        (root / "latest").write_bytes(content)
    found, reports = load(root)
    assert found.step == 2 and len(reports) == 1 and str(root / "latest") in reports[0]


def test_no_whole_checkpoint_is_an_error_that_names_each(two_checkpoints, tmp_path):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    damaged = [root / "step-000001" / "meta.json", root / "step-000002" / "tensors.safetensors"]
    for path in damaged:
        path.write_bytes(b"")
    with pytest.raises(UserError) as raised:
        load(root)
    assert all(str(path) in str(raised.value) for path in damaged)


def _sign(folder: Path) -> None:
    """Make the manifest fit the files again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    ],
)
def test_a_header_that_promises_more_than_the_file_holds_is_refused(two_checkpoints, tmp_path, header):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    path = root / "step-000002" / "tensors.safetensors"
    text = json.dumps(header).encode()
    for length in (len(text), 2**40):
        path.write_bytes(struct.pack("<Q", length) + text + b"\0" * 4)
        _sign(path.parent)
        assert_previous_is_used(root, path)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_meta_that_is_no_json_object_is_refused(two_checkpoints, tmp_path, content):
    root = Path(shutil.copytree(two_checkpoints, tmp_path / "root"))
    path = root / "step-000002" / "meta.json"
    path.write_bytes(content)
    _sign(path.parent)
    assert_previous_is_used(root, path)


# -- kills and full disks -----------------------------------------------------------------------------------------

SYSTEM_CALLS = ("write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


def run_killed_at(nth: int, action) -> bool:
    """Run `action` in a child that is killed by SIGKILL right before its nth system call; False if it had fewer."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        calls = 0

        def counted(original):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        for name in SYSTEM_CALLS:
            setattr(os, name, counted(getattr(os, name)))
        code = 1
        with contextlib.suppress(BaseException):
            action()
            code = 0
        os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.parametrize("step", [3, 2])  # a new one; the newest one once more, with other content
def test_killed_at_any_system_call_either_the_old_or_the_new_checkpoint_is_whole(
    two_checkpoints, tmp_path, step, monkeypatch
):
    # A killed process loses nothing that it wrote, flushed or not; flushing takes most of the time on a busy disk.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    nth, seen = 1, []
    while True:
        root = Path(shutil.copytree(two_checkpoints, tmp_path / str(nth)))
        killed = run_killed_at(nth, lambda root=root: save(root, step, value=50))
        remove_leftovers(root)
        found, reports = load(root)
        assert reports == []
        value = int(found.tensors["a"][0, 0])
        assert (found.step, value) in {(2, 2), (step, 50)} and (found.tensors["a"] == value).all()
        seen.append(value)
        save(root, 4)
        assert load(root)[0].step == 4 and len(steps(root)) == 2
        if not killed:
            break
        nth += 1
    assert nth > 10 and seen == sorted(seen) and seen[0] == 2 and seen[-1] == 50


def test_whenever_the_disk_is_full_a_whole_checkpoint_is_there(tmp_path, monkeypatch):
    fsync, nth, done = os.fsync, 0, False
    while not done:
        nth, calls, root = nth + 1, [], tmp_path / str(nth)
        save(root, 1)

        def full(descriptor, nth=nth, calls=calls):
            calls.append(descriptor)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                save(root, 2)
                done = True
            except UserError as error:
                assert "disk is full" in str(error) and str(root) in str(error)
        found, reports = load(root)
        assert reports == [] and (found.tensors["a"] == found.step).all()
        assert not [name for name in steps(root) if ".tmp-" in name]
        assert found.step == (1 if nth <= 3 else found.step)  # not even its files were flushed
    assert nth > 6 and found.step == 2
