import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import (
    atomic_directory,
    atomic_file,
    atomic_write,
    json_clean,
    remove_directory,
    remove_leftovers,
    sha256_of,
)


class Killed(BaseException):
    pass


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def full_disk(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path):
    for content in (b"old", b"", "new ü"):
        atomic_write(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("system_call", ["write", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_free_space_and_the_old_content_stays(tmp_path, monkeypatch, system_call, error):
    path = tmp_path / "a"
    atomic_write(path, "old")

    def fail(*_args):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, system_call, fail)
    with pytest.raises(UserError, match=r"MiB free") as raised:
        atomic_write(path, "new")
    assert str(path) in str(raised.value)
    assert path.read_text() == "old" and names(tmp_path) == {"a"}


def test_a_disk_that_fills_up_halfway_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a"
    atomic_write(path, "old")
    write, calls = os.write, []

    def short_then_full(descriptor, data):
        calls.append(len(data))
        return write(descriptor, bytes(data[:3])) if len(calls) < 3 else full_disk()

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(UserError):
        atomic_write(path, "0123456789")
    assert calls == [10, 7, 4]
    assert path.read_text() == "old" and names(tmp_path) == {"a"}


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    atomic_write(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "a", "x")


@pytest.mark.parametrize("failure", [Killed, ValueError])
def test_a_failure_inside_leaves_the_old_file_and_folder(tmp_path, failure):
    atomic_write(tmp_path / "file", "old")
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "a").write_text("old")
    with pytest.raises(failure), atomic_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise failure
    with pytest.raises(failure), atomic_directory(tmp_path / "folder") as partial:
        (partial / "a").write_text("half")
        raise failure
    assert names(tmp_path) == {"file", "folder"}
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "old"


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    for content in ("a", "b"):
        with atomic_directory(tmp_path / "folder") as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / content).write_text(content)
            assert content == "a" or names(tmp_path / "folder" / "deep") == {"a"}
    assert names(tmp_path) == {"folder"} and names(tmp_path / "folder" / "deep") == {"b"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_are_read_by_whoever_may_read_their_folder(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "model") as partial:
            save_file({"x": np.zeros(2)}, partial / "model.safetensors")
            (partial / "secret.key").touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == mode
    assert (tmp_path / "model" / "secret.key").stat().st_mode & 0o777 == 0o600, "only weights are shared"


@pytest.mark.parametrize("nth_rename", [0, 1])
def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch, nth_rename):
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "a").write_text("old")
    rename, calls = os.rename, []

    def fail_once(source, target):
        calls.append(source)
        if len(calls) == nth_rename + 1:
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(UserError), atomic_directory(tmp_path / "folder") as partial:
        (partial / "a").write_text("new")
    assert names(tmp_path) == {"folder"} and (tmp_path / "folder" / "a").read_text() == "old"


def test_leftovers_go_and_what_was_moved_aside_comes_back(tmp_path):
    tag = "1234-0123abcd"
    (tmp_path / "keep.tmp-notes").write_text("a user's file with a name like ours")
    (tmp_path / f"file.tmp-new-{tag}").write_text("half")
    for name in (f"gone.tmp-old-{tag}", f"gone.tmp-new-{tag}", "present", f"present.tmp-old-{tag}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    assert len(remove_leftovers(tmp_path)) == 4
    assert names(tmp_path) == {"keep.tmp-notes", "gone", "present"}
    assert (tmp_path / "gone" / "content").read_text() == f"gone.tmp-old-{tag}"
    assert (tmp_path / "present" / "content").read_text() == "present"


def test_a_deletion_that_is_cut_short_leaves_no_half_folder_under_the_name(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("x")

    def cut(_path):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("wmpo_ray.core.files.shutil.rmtree", cut)
        remove_directory(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set()


def test_sha256_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_knows_no_numpy_and_no_nan():
    values = {"a": np.float32(0.5), "b": (np.int64(3), np.bool_(True)), 4: np.array([1.0, np.nan]), "c": float("inf")}
    clean = json_clean(values)
    assert clean == {"a": 0.5, "b": [3, True], "4": [1.0, None], "c": None}
    assert type(clean["a"]) is float and type(clean["b"][0]) is int and type(clean["b"][1]) is bool
    with pytest.raises(TypeError, match="object"):
        json_clean({"a": object()})
