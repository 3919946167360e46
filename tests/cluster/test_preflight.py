"""What would stop a run later is one line at its start, with the setting to change, and nothing is made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.host import preflight as checks
from cluster.host.doctor import examine
from cluster.host.preflight import (
    Verdict,
    check_disk,
    check_packages,
    check_temporary_folder,
    preflight,
    setting_checks,
)
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
ADAPTERS = ["policy.kind=openvla_oft", "policy.pretrained=x", "policy.openvla.lora_rank=4"]
ON_GPUS = [f"placement.{role}.gpus=1" for role in ("imagination", "reward", "learner")]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def problems(*overrides: str, **options) -> list[str]:
    found = setting_checks(load_config("smoke", overrides), **options)
    assert all(check.verdict is Verdict.FAIL and "\n" not in check.detail for check in found)
    return [check.detail for check in found]


def pretend_missing(monkeypatch, package: str) -> None:
    for kind in ("policies.openvla.openvla_kind", "world_models.diffusion_kind"):
        missing = lambda name: None if name == package else object()
        monkeypatch.setattr(f"wmpo_ray.{kind}.find_spec", missing)


def test_the_presets_that_run_here_ask_for_nothing_that_is_missing():
    for name in ("smoke", "demo"):
        assert setting_checks(load_config(name)) == []


def test_a_missing_compiler_is_a_problem_only_of_runs_that_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (found,) = problems("world_model.compile=true")
    assert "no g++" in found and "CXX" in found and "world_model.compile" in found
    assert not problems() and not problems("world_model.compile=true", stages=["demos", "policy"])
    compiler = tmp_path / "my-c++"
    compiler.touch(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert not problems("world_model.compile=true")


def test_missing_extras_are_named_with_the_setting_that_needs_them(monkeypatch):
    pretend_missing(monkeypatch, "peft")
    (found,) = problems(*ADAPTERS)
    assert "policy.openvla.lora_rank=4" in found and "wmpo-ray[lora]" in found
    pretend_missing(monkeypatch, "flash_attn")
    assert not problems(*ADAPTERS)
    assert "wmpo-ray[gpu]" in problems('world_model.attention="flash"')[0]


def test_a_gpu_that_is_asked_for_and_absent(monkeypatch):
    assert 'cluster.device="cuda"' in problems("cluster.device=cuda", *ON_GPUS)[0]
    assert "placement.imagination.gpus" in problems("weights.transport=nccl")[0]
    assert not problems("weights.transport=nccl", *ON_GPUS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not problems("cluster.device=cuda", *ON_GPUS) and not problems("cluster.device=cuda", serial=True)
    (found,) = problems("cluster.device=cuda", *ON_GPUS[1:])
    assert "placement.imagination.gpus" in found and "placement.learner" not in found


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert "monitoring.port" in problems(f"monitoring.port={port}", serial=True)[0]
        assert not problems(f"monitoring.port={port}")  # with Ray it is not used
    assert not problems(f"monitoring.port={port}", serial=True)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_is_too_long_for_sockets(name, monkeypatch):
    for other in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "/tmp/" + "t" * 90)
    found = check_temporary_folder()
    assert found.verdict is Verdict.FAIL and "107 at most" in found.detail and "RAY_TMPDIR" in found.detail
    monkeypatch.setenv(name, "/tmp/short")
    assert check_temporary_folder().verdict is Verdict.OK


def test_the_longest_temporary_folder_that_passes_is_the_longest_that_sockets_take(tmp_path):
    """The bound is the kernel's: a socket is made at the very path that Ray will use."""
    rest = len(checks.SOCKET.format(pid=os.getpid())) + 1
    for length, fits in ((107 - rest, True), (108 - rest, False)):
        folder = Path("/tmp") / ("f" * (length - len("/tmp/")))
        assert (check_temporary_folder(folder).verdict is Verdict.OK) == fits
        path = folder / checks.SOCKET.format(pid=os.getpid())
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError) as raised:
            probe.bind(str(path))  # there is no such folder, or the path is refused at once
        assert ("too long" in str(raised.value)) != fits


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert "choose another --out" in check_disk(tmp_path / "file" / "run").detail
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    found = check_disk(tmp_path / "a" / "run")
    assert found.verdict is Verdict.FAIL and f"{tmp_path} cannot be written to" in found.detail


@pytest.mark.parametrize(("free", "verdict"), [(1, Verdict.FAIL), (2**30, Verdict.WARN), (2**40, Verdict.OK)])
def test_a_disk_that_is_full_fails_and_one_that_is_nearly_so_warns(tmp_path, monkeypatch, free, verdict):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=free, free=free))
    assert check_disk(tmp_path).verdict is verdict


def test_packages_of_other_versions_are_named(monkeypatch):
    requires = ["numpy>=999", "no-such-package>=1", "pytest>=1", 'nothing>=5; extra == "gpu"']
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    detail = check_packages().detail
    assert f"numpy {metadata.version('numpy')} is installed, numpy>=999 is needed" in detail
    assert "no-such-package>=1 is missing" in detail and "pytest" not in detail and "nothing" not in detail
    monkeypatch.undo()
    assert check_packages().verdict is Verdict.OK


def test_every_problem_has_a_line_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "t" * 90)
    config = load_config("smoke", ["world_model.compile=true", "cluster.device=cuda"])
    with pytest.raises(UserError) as raised:
        preflight(config, tmp_path / "run", serial=False, address="", stages=["gate"])
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["temporary folder", "device", "placement", "models"]
    assert not list(tmp_path.iterdir())
    preflight(Config(), tmp_path / "run", serial=True, address="", stages=["gate"])  # there are no sockets


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (["run"], ["world_model.compile=true"], "there is no no-compiler"),
        (["stage", "gate"], ["world_model.compile=true"], "there is no no-compiler"),
        (["submit"], ["cluster.device=cuda"], "placement.imagination.gpus"),
    ],
)
def test_a_command_fails_before_it_begins(command, settings, words, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")
    out = [] if command == ["submit"] else ["--serial"]
    arguments = [*command, "smoke", *out, "--out", str(tmp_path / "run"), *(f"--set={text}" for text in settings)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_doctor_shows_the_same_checks(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "t" * 90)
    config = load_config("smoke", ["world_model.compile=true"])
    failed = {check.name for check in examine(False, tmp_path, config) if check.verdict is Verdict.FAIL}
    assert failed == {"temporary folder", "models"}
    result = CliRunner().invoke(app, ["doctor", "smoke", "--no-ray", "--set=world_model.compile=true"])
    assert result.exit_code == 1 and "no-compiler" in result.output
    assert CliRunner().invoke(app, ["doctor", "--set=seed=1"]).exit_code == 2


def wmpo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or "TOKEN" in key}
    command = [sys.executable, "-m", "wmpo_ray", *arguments]
    variables = {**kept, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=120)


def test_a_cluster_that_is_gone_is_one_line_at_the_start(tmp_path):
    done = wmpo("run", "smoke", "--out", str(tmp_path / "run"), RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2 and "nothing answers at 127.0.0.1:1" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "RAY_ADDRESS" in done.stderr and not (tmp_path / "run").exists()


def test_a_run_that_goes_on_waits_for_its_cluster(tmp_path):
    folder, waits = tmp_path / "run", "--set=faults.cluster_timeout_s=0.7"
    RunFolder.open(folder, load_config("smoke")).close()
    arguments = ["run", "smoke", "--out", str(folder), "--set=cluster.address=127.0.0.1:1", waits, "--resume"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "(waited 0.7 s: faults.cluster_timeout_s)" in result.stderr
    (line,) = (folder / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "cluster.awaited"
