"""The folder of a run: its config, what is done, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from wmpo_ray.config.loading import config_differences, config_hash, config_to_json, read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, is_leftover, json_clean, remove_directory, remove_leftovers
from wmpo_ray.core.section import check_local
from wmpo_ray.core.untrusted import read_json

CONFIG, SUMMARY, LOCK = "config.json", "summary.json", ".lock"
SUB_FOLDERS = ("checkpoints", "trajectories", "videos", "models", "report")
CHECKPOINTED_STAGE = "optimize"  # its checkpoints stand directly in `checkpoints` and stay when it is done
TRAININGS = {  # supervised stage -> its trainings, each with a folder in `checkpoints` that goes when the stage is done
    "policy": ("policy",),
    "world-model": ("world-model", "verifier"),
    "reward-model": ("reward-model",),
}
PACKAGES = ("torch", "ray", "diffusers", "transformers", "numpy", "wmpo-ray")


class RunFolder:
    """A run's folder. `RunFolder.open` is for the one process that runs it; `RunFolder(path)` only looks.

    Raises `UserError` where `path` is no run folder or its summary cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: Any = None
        self._summary = _read_summary(path / SUMMARY) if (path / SUMMARY).exists() else {}
        if not (path / CONFIG).exists():
            raise UserError(f"{path} is not the folder of a run: it holds no {CONFIG}")

    @classmethod
    def open(cls, path: Path, config: Config, resume: bool) -> Self:
        """Create the folder of a run, or go on with it, and lock it until `close`.

        Stages that are done stay done; a stage that stopped in the middle needs `resume`. Raises `UserError` for a
        folder with another config (naming the keys), one that holds other things, one that another process has
        locked, and an unfinished one without `resume`. Settings that do not change a run's result may differ; the
        folder then takes over the new ones.
        """
        try:
            check_local(str(path), "--out")
        except ValueError as error:
            raise UserError(str(error)) from None
        _refuse_foreign(path)
        with ExitStack() as on_failure:
            try:
                path.mkdir(parents=True, exist_ok=True)
                lock = on_failure.enter_context(open(path / LOCK, "a"))
            except OSError as error:
                raise UserError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{path} is in use by another process; wait for it or choose another --out") from error
            _prepare(path, config)
            run = cls(path)
            stopped = run._stopped_in_the_middle()
            if stopped and not resume:
                raise UserError(
                    f"{path}: its stage {stopped} stopped in the middle; "
                    "add --resume to go on from its last checkpoint or choose another --out"
                )
            run._lock = lock
            run._take_over(config)
            on_failure.pop_all()
        return run

    @property
    def config(self) -> Config:
        """The config that this folder was made for."""
        return read_config_json(self.path / CONFIG)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def training_checkpoints(self, training: str) -> Path:
        """Where a supervised training saves its state, one of those in `TRAININGS`."""
        return self.checkpoints / training

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def summary(self) -> dict:
        """A copy of what summary.json holds."""
        return json_clean(self._summary)

    def is_done(self, stage: str) -> bool:
        return stage in self._summary.get("stages", {})

    def figures(self, stage: str) -> dict:
        """What `finish` recorded of a stage. Raises `UserError` if it is not done."""
        if not self.is_done(stage):
            raise UserError(f"{self.path}: the stage {stage} is not done yet; run it first")
        return dict(self._summary["stages"][stage]["figures"])

    def finish(self, stage: str, seconds: float, figures: dict) -> None:
        """Record a stage as done, on the disk when this returns; the state of its training is deleted."""
        self._write({"stages": {**self._summary["stages"], stage: {"seconds": seconds, "figures": figures}}})
        self._remove_training_checkpoints(stage)

    def set_result(self, base: dict, final: dict) -> None:
        """Record the outcome: success of the base policy and of the final one, {"value", "low", "high", "num"} each."""
        gain = 100 * (final["value"] - base["value"])
        self._write({"result": {"base_success": base, "final_success": final, "gain_points": gain}})

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stopped_in_the_middle(self) -> str | None:
        folders = {stage: [self.training_checkpoints(name) for name in names] for stage, names in TRAININGS.items()}
        folders[CHECKPOINTED_STAGE] = [self.checkpoints]
        for stage, roots in folders.items():
            if not self.is_done(stage) and any(any(root.glob("step-*")) for root in roots):
                return stage
        return None

    def _take_over(self, config: Config) -> None:
        """Settings that do not change the result, from this opening on; and the end of what a kill cut short."""
        if self.config != config:
            atomic_write(self.path / CONFIG, config_to_json(config))
        if self._summary.get("config_hash") != config_hash(config):
            self._write({"config_hash": config_hash(config)})
        for stage in TRAININGS:
            if self.is_done(stage):
                self._remove_training_checkpoints(stage)

    def _remove_training_checkpoints(self, stage: str) -> None:
        for name in TRAININGS.get(stage, ()):
            if self.training_checkpoints(name).exists():
                remove_directory(self.training_checkpoints(name))

    def _write(self, changes: dict) -> None:
        assert self._lock is not None, "only a folder opened with RunFolder.open is written to"
        summary = json_clean({**self._summary, **changes})
        atomic_write(self.path / SUMMARY, _to_json(summary))
        self._summary = summary


def _refuse_foreign(path: Path) -> None:
    """Before anything is written: a folder that is not ours is left as it is."""
    if not path.exists() or (path / CONFIG).exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file; choose another folder with --out")
    others = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK and not is_leftover(entry.name))
    if others:
        raise UserError(
            f"{path} holds other things ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no {CONFIG}; "
            "choose an empty or new folder with --out"
        )


def _prepare(path: Path, config: Config) -> None:
    if (path / CONFIG).exists():
        _refuse_other_config(path, config)
    else:
        # First: from here on the folder is known as ours, and whatever a kill leaves out is made on the next opening.
        atomic_write(path / CONFIG, config_to_json(config))
    for name in ("", *SUB_FOLDERS):
        (path / name).mkdir(exist_ok=True)
        remove_leftovers(path / name)
    if not (path / SUMMARY).exists():
        atomic_write(path / SUMMARY, _to_json(_fresh_summary(config)))


def _refuse_other_config(path: Path, config: Config) -> None:
    made_with = read_config_json(path / CONFIG)
    differences = config_differences(_with_free_settings_of(config, made_with), config)
    if differences:
        raise UserError(
            f"{path} holds a run with another config: {'; '.join(differences)}; "
            "use that config or choose another folder with --out"
        )


def _with_free_settings_of(other: Config, config: Config) -> Config:
    """`config`, but where a run is placed and what it survives as in `other`: none of that changes its result.

    How many processes share a training, and their devices, change it by rounding.
    """
    cluster, weights = other.cluster, other.weights
    return config.model_copy(
        update={
            "placement": other.placement,
            "faults": other.faults,
            "checkpoint": other.checkpoint,
            "monitoring": other.monitoring,
            "cluster": config.cluster.model_copy(
                update={
                    "imagination_actors": cluster.imagination_actors,
                    "reward_actors": cluster.reward_actors,
                    "learner_ranks": cluster.learner_ranks,
                    "training_workers": cluster.training_workers,
                    "device": cluster.device,
                    "address": cluster.address,
                }
            ),
            "weights": config.weights.model_copy(
                update={"transport": weights.transport, "timeout_s": weights.timeout_s}
            ),
        }
    )


def _read_summary(path: Path) -> dict:
    try:
        summary = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; delete it to run every stage again") from error
    stages = summary.get("stages") if isinstance(summary, dict) else None
    if not isinstance(stages, dict):
        raise UserError(f"{path} is damaged: it lists no stages; delete it to run every stage again")
    for stage, entry in stages.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("figures"), dict):
            raise UserError(
                f"{path} is damaged: the stage {stage!r} has no figures; delete it to run every stage again"
            )
    return summary


def _fresh_summary(config: Config) -> dict:
    return {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "versions": _versions(),
        "machine": _machine(),
        "stages": {},
        "result": {},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> str:
    """Such as `AMD EPYC 7B13, 2 cores, 8 GiB`."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB"


def _to_json(content: dict) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
