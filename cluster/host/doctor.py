"""`wmpo doctor`: is this machine ready? One verdict for each thing that a run needs or could use."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.host.preflight import Check, Verdict, machine_checks, setting_checks
from cluster.host.security import MODE, require_token
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.kinds import TABLES

RAY_TIMEOUT_S = 120
LIBRARIES = ("ray", "diffusers", "transformers", "pyarrow")
SHIPPED_WORLD_MODELS = ("embedded-a", "embedded-b", "lift-a", "stack-a")
VERDICT_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def examine(with_ray: bool = True, folder: Path = Path("."), config: Config | None = None) -> list[Check]:
    """Every check, in the order of the table.

    Args:
        with_ray: start a small Ray on this machine for one task
        folder: where runs will be
        config: of a run, to see whether this machine has what its settings ask for
    """
    checks = [check_python(), check_torch()]
    checks += [check_library(name) for name in LIBRARIES]
    checks += [check_flash_attention(), check_gpus(), check_rendering()]
    checks += [check_pusht(), check_metaworld(), check_robosuite(), check_world_models()]
    checks += check_plugins()
    checks += [*machine_checks(folder), check_token(), check_prometheus()]
    if config is not None:
        fine = Check("settings", Verdict.OK, f"this machine has what {config.name} asks for")
        checks += setting_checks(config) or [fine]
    if with_ray:
        checks.append(check_ray_task())
    return checks


def _guarded(name: str, probe: Callable[[], str], errors: tuple[type[Exception], ...], advice: str) -> Check:
    """OK with what `probe` says, or FAIL with the reason and the advice where it raises one of `errors`."""
    try:
        return Check(name, Verdict.OK, probe())
    except errors as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Check(name, Verdict.FAIL, f"{reason[0]}; {advice}")


def check_python() -> Check:
    return Check("Python", Verdict.OK, f"{platform.python_version()}, {os.cpu_count()} CPUs")


def check_torch() -> Check:
    def probe() -> str:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        square = torch.eye(8, device=device, dtype=torch.bfloat16)
        exact = torch.equal(square @ square, square)
        bf16 = "bf16" if exact else "bf16 gives wrong products"
        return f"{torch.__version__}, device {device}, {torch.get_num_threads()} threads, {bf16}"

    return _guarded("torch", probe, (ImportError, RuntimeError), "run make setup")


def check_library(name: str) -> Check:
    def probe() -> str:
        return str(importlib.import_module(name).__version__)

    return _guarded(name, probe, (ImportError,), "run make setup")


def check_flash_attention() -> Check:
    try:
        return Check("flash-attn", Verdict.OK, str(importlib.import_module("flash_attn").__version__))
    except ImportError:
        return Check("flash-attn", Verdict.OK, "absent; optional, for GPUs: pip install 'wmpo-ray[gpu]'")


def check_gpus() -> Check:
    try:
        import torch
    except ImportError:
        return Check("GPUs", Verdict.WARN, "cannot be seen without torch")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("GPUs", Verdict.OK, ", ".join(names) or "none; the embedded task needs none")


def check_rendering() -> Check:
    def probe() -> str:
        from wmpo_ray.environments.pocket.env import PocketEnvironment

        frame = PocketEnvironment().reset([0])
        assert frame is not None
        if not frame.std():
            raise RuntimeError("the frame of the embedded environment is of one colour")
        return f"embedded environment, frame {'x'.join(map(str, frame.shape[1:]))}"

    return _guarded("rendering", probe, (ImportError, RuntimeError), "run make setup")


def check_pusht() -> Check:
    try:
        version = importlib.metadata.version("gym-pusht")
    except importlib.metadata.PackageNotFoundError:
        return Check("PushT", Verdict.OK, "absent; optional, a simulator: pip install 'wmpo-ray[pusht]'")

    def probe() -> str:
        from wmpo_ray.environments.pusht.pusht_kind import PushTKind
        from wmpo_ray.environments.pusht.pusht_settings import PushTConfig

        PushTKind().check(PushTConfig())
        return f"gym-pusht {version}, makes and draws a scene"

    return _guarded("PushT", probe, (ConfigError,), "or uninstall it")


def check_robosuite() -> Check:
    from wmpo_ray.environments.robosuite.installed import conflicts, version_of
    from wmpo_ray.environments.robosuite.robosuite_kind import RobosuiteKind
    from wmpo_ray.environments.robosuite.robosuite_settings import RobosuiteConfig
    from wmpo_ray.environments.simulators.opengl import BACKENDS, probe

    if version_of("robosuite") is None:
        return Check("robosuite", Verdict.OK, "absent; optional, a simulator: make setup EXTRAS=sim")

    def try_it() -> str:
        if wrong := conflicts():
            raise ConfigError("; ".join(wrong))
        backends = [f"{backend} {'works' if probe(backend).works else 'does not work'}" for backend in BACKENDS]
        RobosuiteKind().check(RobosuiteConfig())
        versions = ", ".join(f"{name} {version_of(name)}" for name in ("robosuite", "mujoco"))
        return f"{versions}, makes and draws a scene; without a screen {', '.join(backends)}"

    return _guarded("robosuite", try_it, (ConfigError,), "make setup EXTRAS=sim in another checkout, or uninstall it")


def check_metaworld() -> Check:
    try:
        version = importlib.metadata.version("metaworld")
    except importlib.metadata.PackageNotFoundError:
        return Check("Meta-World", Verdict.OK, "absent; optional, a simulator: pip install 'wmpo-ray[metaworld]'")

    def probe() -> str:
        from wmpo_ray.environments.metaworld.metaworld_kind import MetaWorldKind
        from wmpo_ray.environments.metaworld.metaworld_settings import MetaWorldConfig

        MetaWorldKind().check(MetaWorldConfig())
        return f"metaworld {version}, makes and draws a scene with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"

    return _guarded("Meta-World", probe, (ConfigError,), "or uninstall it")


def check_world_models() -> Check:
    from wmpo_ray.world_models.diffusion import PRETRAINED_DIR, SETTINGS_FILE

    missing = [name for name in SHIPPED_WORLD_MODELS if not (PRETRAINED_DIR / name / SETTINGS_FILE).is_file()]
    if missing:
        detail = f"missing: {', '.join(missing)}; install the package anew"
        return Check("world models", Verdict.FAIL, detail)
    return Check("world models", Verdict.OK, ", ".join(SHIPPED_WORLD_MODELS))


def check_plugins() -> list[Check]:
    """One verdict for each kind that an installed package registers; none of ours depends on them."""
    plugins = [plugin for table in TABLES for plugin in table.plugins()]
    if not plugins:
        return [Check("plugins", Verdict.OK, "none")]
    return [
        Check(
            f"plugin {plugin.name}",
            Verdict.WARN if plugin.problem else Verdict.OK,
            f"{plugin.key} of the package {plugin.package}" + (f": {plugin.problem}" if plugin.problem else ""),
        )
        for plugin in plugins
    ]


def check_token() -> Check:
    def probe() -> str:
        if os.environ.get(MODE, "token") != "token":
            raise UserError(f"{MODE}={os.environ[MODE]}: whoever reaches the cluster's ports can run code on it")
        path = require_token()
        return f"{path}, readable by its owner only" if path else "in the environment"

    return _guarded("token", probe, (UserError,), f"unset {MODE}")


def check_prometheus() -> Check:
    path = shutil.which("prometheus")
    return Check("Prometheus", Verdict.OK, path or "absent; optional, for wmpo monitor: apt-get install prometheus")


def check_ray_task() -> Check:
    # In a process of its own: Ray reports a failed start by a bare Exception, and a hanging one must not hang us.
    command = [sys.executable, "-c", "from cluster.host.doctor import run_ray_task; print(run_ray_task())"]
    advice = "use --serial, or look into Ray's logs in /tmp/ray"
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=RAY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Check("Ray task", Verdict.FAIL, f"no answer within {RAY_TIMEOUT_S} s; {advice}")
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check("Ray task", Verdict.FAIL, f"{reason[-1]}; {advice}")
    return Check("Ray task", Verdict.OK, done.stdout.strip().splitlines()[-1])


def run_ray_task() -> str:
    """Start Ray on this machine, run one task in another process, stop Ray; says how long that took."""
    import ray

    started = time.monotonic()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        seen = ray.get(ray.remote(_process_id).remote(), timeout=RAY_TIMEOUT_S)
    finally:
        ray.shutdown()
    assert seen != os.getpid()
    return f"started and ran a task in {time.monotonic() - started:.1f} s"


def _process_id() -> int:
    return os.getpid()
