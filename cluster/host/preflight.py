"""What can be known about a run before it begins, so that no stage fails hours later on what the first second could say.

`preflight` raises for a run; `wmpo doctor` shows the same checks, and more, as a table.
"""

from __future__ import annotations

import enum
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from cluster.host.ports import require_free
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.kinds import POLICIES, WORLD_MODELS

GIB = 2**30
MIN_FREE_DISK = 2 * GIB
LEAST_FREE_DISK = GIB // 16  # below this not even the smallest run ends
MIN_SHARED_MEMORY = GIB // 2
SHARED_MEMORY = Path("/dev/shm")
PACKAGE = "wmpo-ray"
MAX_SOCKET_PATH = 107  # bytes that Linux takes
SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
ROLES = ("imagination", "reward", "learner")
WORLD_MODEL_STAGES = ("world-model", "reward-model", "gate", "optimize")


class Verdict(enum.Enum):
    OK = "ok"
    WARN = "warning"
    FAIL = "fails"


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    detail: str


def preflight(
    config: Config,
    folder: Path,
    *,
    serial: bool,
    address: str,
    stages: Collection[str],
    awaits_cluster: bool = False,
) -> None:
    """Check the machine, the settings and the cluster for a run of these stages.

    Args:
        folder: of the run; need not exist
        address: of the cluster to join; "" for one that is started here
        awaits_cluster: the caller waits for the cluster, so that it need not answer yet
    Raises:
        UserError: one line for each thing that would stop the run, with the setting to change
    """
    checks = machine_checks(folder, starts_ray=not serial and not address)
    checks += setting_checks(config, serial=serial, stages=stages)
    if address and not awaits_cluster:
        checks.append(check_cluster(address))
    require(checks)


def preflight_submission(config: Config) -> None:
    """What can be known before a run is sent elsewhere, where it makes the other checks itself. Raises as `preflight`."""
    problems = [Check("placement", Verdict.FAIL, problem) for problem in _placement_problems(config)]
    require([check_packages(), *problems])


def require(checks: Sequence[Check]) -> None:
    """Raises UserError with a line for each check that failed."""
    failed = [f"{check.name}: {check.detail}" for check in checks if check.verdict is Verdict.FAIL]
    if failed:
        raise UserError("\n".join(failed))


def machine_checks(folder: Path, starts_ray: bool = True) -> list[Check]:
    """What every run needs of this machine."""
    checks = [check_packages(), check_disk(folder)]
    return [*checks, check_temporary_folder(), check_shared_memory()] if starts_ray else checks


def setting_checks(config: Config, *, serial: bool = False, stages: Collection[str] | None = None) -> list[Check]:
    """What the settings ask of this machine and of each other; `stages` None: of every stage."""
    found = [("device", problem) for problem in _device_problems(config)]
    if not serial:
        found += [("placement", problem) for problem in _placement_problems(config)]
    found += [("models", problem) for problem in _model_problems(config, stages)]
    if serial and config.monitoring.metrics and config.monitoring.port:
        try:
            require_free(config.monitoring.port, "monitoring.port")
        except UserError as error:
            found.append(("port", str(error)))
    return [Check(name, Verdict.FAIL, problem) for name, problem in found]


# -- the machine -------------------------------------------------------------------------------------------------


def check_packages() -> Check:
    """Whether every installed package is of a version that we work with."""
    name = "packages"
    try:
        needed = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        return Check(name, Verdict.OK, f"{PACKAGE} is not installed but run from a folder: versions are not checked")
    wrong = []
    for package in needed:
        if package.marker is not None and not package.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{package} is missing")
            continue
        if not package.specifier.contains(version, prereleases=True):
            wrong.append(f"{package.name} {version} is installed, {package.name}{package.specifier} is needed")
    if wrong:
        return Check(name, Verdict.FAIL, f"{'; '.join(wrong)}; run make setup")
    return Check(name, Verdict.OK, f"{len(needed)} requirements are met")


def check_disk(folder: Path) -> Check:
    """Whether a run's folder can be made and written to, and how much room there is."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        return Check("disk", Verdict.FAIL, f"{place} is no folder; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("disk", Verdict.FAIL, f"{place} cannot be written to; choose another --out")
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.2f} GiB free in {place}"
    if free < LEAST_FREE_DISK:
        return Check("disk", Verdict.FAIL, f"{text}, {LEAST_FREE_DISK / GIB:.2f} are the least; choose another --out")
    verdict = Verdict.OK if free >= MIN_FREE_DISK else Verdict.WARN
    return Check("disk", verdict, f"{text}, {MIN_FREE_DISK / GIB:.0f} advised")


def check_temporary_folder(folder: Path | None = None) -> Check:
    """Whether Ray can keep its sockets in `folder`, or in the one that the environment names."""
    folder = temporary_folder() if folder is None else folder
    knob = "set RAY_TMPDIR to a shorter folder, such as /tmp"
    # Known before there is a process: its number has as many digits as ours, or one more.
    length = len(os.fsencode(folder / SOCKET.format(pid=f"{os.getpid()}")))
    if length > MAX_SOCKET_PATH:
        detail = f"{folder}: Ray's sockets there would have paths of {length} bytes, {MAX_SOCKET_PATH} at most; {knob}"
        return Check("temporary folder", Verdict.FAIL, detail)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        detail = f"{place} is no folder that can be written to; set RAY_TMPDIR to one"
        return Check("temporary folder", Verdict.FAIL, detail)
    return Check("temporary folder", Verdict.OK, f"{folder}")


def temporary_folder() -> Path:
    """Where Ray keeps what it needs while it runs, in its subfolder `ray`."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())


def check_shared_memory() -> Check:
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", Verdict.WARN, f"no {SHARED_MEMORY}: Ray keeps its objects on disk, more slowly")
    size = shutil.disk_usage(SHARED_MEMORY).total
    verdict = Verdict.OK if size >= MIN_SHARED_MEMORY else Verdict.WARN
    advice = "" if verdict is Verdict.OK else "; Ray will use the disk instead; in a container set --shm-size=2g"
    return Check("shared memory", verdict, f"{size / GIB:.1f} GiB{advice}")


def check_cluster(address: str) -> Check:
    """Whether a Ray cluster answers at `address`."""
    from cluster.host.connection import require_cluster  # imports Ray

    try:
        return Check("cluster", Verdict.OK, require_cluster(address))
    except UserError as error:
        return Check("cluster", Verdict.FAIL, str(error))


# -- what settings ask for ---------------------------------------------------------------------------------------


def _model_problems(config: Config, stages: Collection[str] | None) -> Iterator[str]:
    """What the chosen kinds of models lack on this machine."""
    try:
        device = process_device(config.cluster.device)
    except UserError:  # reported already
        device = torch.device("cpu")
    yield from POLICIES.find(config.policy.kind).problems(config, device)
    if stages is None or not set(stages).isdisjoint(WORLD_MODEL_STAGES):
        yield from WORLD_MODELS.find(config.world_model.kind).problems(config, device)


def _device_problems(config: Config) -> Iterator[str]:
    try:
        process_device(config.cluster.device)
    except UserError as error:
        yield str(error)


def _placement_problems(config: Config) -> Iterator[str]:
    without = [role for role in ROLES if not getattr(config.placement, role).gpus]
    if config.cluster.device == "cuda" and without:
        knobs = ", ".join(f"placement.{role}.gpus" for role in without)
        yield f'cluster.device="cuda": {", ".join(without)} would see no GPU; set {knobs}, or cluster.device="auto"'
    if config.weights.transport == "nccl" and "imagination" in without:
        yield 'weights.transport="nccl": imagination would see no GPU; set placement.imagination.gpus, or "object_store"'
