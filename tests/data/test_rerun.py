"""Recordings for Rerun: what is in them, read again by its own program; without the package the extra is named."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.hostile_files import refusal
from tests.support.stored_episodes import sound
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.exchange.rerun_export import export_rerun, rerun_library
from wmpo_ray.data.store import save_episodes


def wmpo(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def files(tmp_path):
    for name in ("real", "imagined"):
        save_episodes(tmp_path / f"{name}.parquet", sound(), Provenance(origin=name))
    return tmp_path / "real.parquet", tmp_path / "imagined.parquet"


def content(path) -> str:
    """What Rerun's own program lists of a recording."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", "-vvv", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_real_and_imagined_episodes_stand_on_one_timeline(files, tmp_path):
    pytest.importorskip("rerun")
    real, imagined = files
    result = wmpo("export", real, "--beside", imagined, "--layout", "rerun", "--out", tmp_path / "a.rrd")
    assert result.exit_code == 0 and "6 episodes" in result.output and "not in it: start states" in result.output
    listed = content(tmp_path / "a.rrd")
    for row in range(6):
        for side in ("real", "imagined"):
            for entity in ("camera", "action/0", "action/1"):
                assert f"/episode_{row:04d}/{side}/{entity}" in listed
        assert f"/episode_{row:04d}/about" in listed
    assert "step" in listed and not list(tmp_path.glob("*.tmp-*"))


def test_the_replays_of_a_run_stand_beside_its_episodes(tmp_path):
    pytest.importorskip("rerun")
    episodes = sound()
    (tmp_path / "run" / "videos").mkdir(parents=True)
    out = ("--layout", "rerun", "--out", tmp_path / "a.rrd")
    assert "has no videos/side_by_side.npz yet" in wmpo("export", tmp_path / "run", *out).output
    arrays = {"real": episodes.frames, "imagined": episodes.frames[::-1]}
    arrays |= {"real_success": episodes.success, "imagined_success": ~episodes.success, "lengths": episodes.lengths}
    texts = np.array('["' + '", "'.join(episodes.instructions) + '"]')
    np.savez_compressed(tmp_path / "run" / "videos" / "side_by_side.npz", instructions=texts, **arrays)
    assert wmpo("export", tmp_path / "run", *out).exit_code == 0
    listed = content(tmp_path / "a.rrd")
    assert "/episode_0005/real/camera" in listed and "/episode_0005/imagined/camera" in listed


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    pytest.importorskip("rerun")
    save_episodes(tmp_path / "few", sound(2))
    assert "holds 6 episodes" in refusal(lambda: export_rerun(files[0], tmp_path / "a.rrd", tmp_path / "few"))
    save_episodes(tmp_path / "other", sound().rows(slice(None, None, -1)))
    assert "row 0: another instruction" in refusal(
        lambda: export_rerun(files[0], tmp_path / "a.rrd", tmp_path / "other")
    )
    assert not list(tmp_path.glob("a.rrd*"))


def test_a_missing_package_is_named_with_its_extra(files, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_rerun(name, *arguments, **options):
        if name.startswith("rerun"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_rerun)
    for call in (rerun_library, lambda: export_rerun(files[0], tmp_path / "a.rrd")):
        with pytest.raises(ConfigError, match=r'pip install "wmpo-ray\[rerun\]"'):
            call()
    result = wmpo("export", files[0], "--beside", files[1], "--out", tmp_path / "a.hdf5")
    assert result.exit_code == 2 and "only --layout rerun" in result.output
