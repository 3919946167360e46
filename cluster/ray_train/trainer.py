"""Supervised trainings on several workers with Ray Train: the same loop as in one process, on a share of every batch.

Workers connect through a store of the first one and average their gradients (`DistributedDataParallel`). Checkpoints
have the same format and folder as with one process: any training resumes from the newest valid one. Ray Train does so
after a worker was lost, and when an elastic training gains or loses workers.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch.distributed as dist
from ray import train
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from cluster.events.event_log import emit
from cluster.events.progress import Reporter
from cluster.events.run_log import TrainingCurve
from cluster.host.ray_private import raised_in_worker, train_record_name
from cluster.ray_train.training_data import TrainingData
from cluster.ray_train.training_group import OwnAddressConfig, RegisterController, end_controller
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Runtime
from cluster.workers.placement import resources_of
from learners.supervised.jobs import Training
from learners.supervised.loop import Progress, WorkerShare
from learners.supervised.training_actor import Course
from learners.supervised.training_state import Numbers, Parts, TrainingCheckpoints
from wmpo_ray.config.cluster import bounds
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process

REPORT_EVERY_S = 0.5  # least time between two progress reports
LEAST_CPUS = 0.01
NO_WORKING_FOLDER = "RAY_CHDIR_TO_TRIAL_DIR"


def check_room(config: Config, runtime: Runtime) -> None:
    """Raises UserError if the cluster cannot hold the least number of workers."""
    if isinstance(runtime, RayRuntime) and runtime.can_grow:
        return
    low = bounds(config.cluster.training_workers)[0]
    available = runtime.available
    for kind, each in _resources(resources_of(config, "learner")).items():
        there = available.get(kind, 0.0)
        if low * each > there + 1e-6:
            raise UserError(
                f"{low} training workers need {low * each:g} {kind}s (placement.learner.{kind.lower()}s={each:g}) "
                f"but the cluster has {there:g}; lower cluster.training_workers={config.cluster.training_workers}"
            )


def train_on_workers(
    config: Config, training: Training, data: TrainingData, folder: Path, reporter: Reporter, curve: TrainingCurve
) -> dict[str, Any]:
    """Run a training on `cluster.training_workers` workers, each placed like a learner; returns its metrics.

    folder: for its checkpoints. A lost worker costs the steps since the last one. Raises RuntimeError once workers
    were lost more than `faults.max_start_failures` times.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(NO_WORKING_FOLDER, "0")  # paths in the configuration are those of this process
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config, "job": training.job, "board": board, "folder": folder},
        scaling_config=scaling_of(config),
        run_config=_run_config(config, folder, board),
        torch_config=OwnAddressConfig(timeout_s=int(config.faults.stall_timeout_s)),
        datasets=data.datasets,
        dataset_config=train.DataConfig(datasets_to_split=[]),
    )
    with reporter.bar(training.description, training.job.num_steps) as advance:
        return _fit(trainer, training, board, ProgressViews(advance, curve))


def scaling_of(config: Config) -> train.ScalingConfig:
    """Each worker has the learner's resources; [min, max] workers if the number is elastic."""
    low, high = bounds(config.cluster.training_workers)
    asked = resources_of(config, "learner")
    return train.ScalingConfig(
        num_workers=high if low == high else (low, high),
        use_gpu=asked.num_gpus > 0,
        resources_per_worker=_resources(asked),
        accelerator_type=asked.accelerator_type or None,
        label_selector=dict(label.split("=", 1) for label in asked.labels) or None,
    )


def _run_config(config: Config, folder: Path, board: Any) -> train.RunConfig:
    # Ray Train would trust its record of an earlier training; the checkpoint folder is the source of truth.
    (folder / train_record_name()).unlink(missing_ok=True)
    return train.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        failure_config=train.FailureConfig(max_failures=config.faults.max_start_failures),
        logging_config=train.LoggingConfig(log_level="ERROR"),
        callbacks=[RegisterController(board)],
    )


def _resources(asked: Resources) -> dict[str, float]:
    """Whole GPUs, since NCCL rejects two workers on one; never zero CPUs, since workers need a placement group."""
    cpus = {"CPU": max(asked.num_cpus, LEAST_CPUS)}
    return cpus | ({"GPU": float(math.ceil(asked.num_gpus))} if asked.num_gpus else {})


# -- on the driver -----------------------------------------------------------------------------------------------


class Board:
    """Progress of the first worker, polled by the driver."""

    def __init__(self) -> None:
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._begun: int | None = None
        self._messages: list[str] = []
        self._controller: tuple[Any, int] | None = None

    def register_controller(self, handle: Any, pid: int) -> None:
        self._controller = handle, pid

    def registered_controller(self) -> tuple[Any, int] | None:
        """Ray Train's controller and its process on this node; None: it has not started."""
        return self._controller

    def begin(self, step: int) -> None:
        """The training goes on after this step; 0: it begins."""
        self._step, self._metrics, self._begun = step, {}, step

    def report(self, step: int, metrics: dict[str, float]) -> None:
        self._step, self._metrics = step, metrics

    def add_message(self, message: str) -> None:
        self._messages.append(message)

    def read(self) -> tuple[int | None, int, dict[str, float], list[str]]:
        """(the step after which the training began, if it did since the last call; step; metrics; messages)."""
        (messages, self._messages), (begun, self._begun) = (self._messages, []), (self._begun, None)
        return begun, self._step, self._metrics, messages


class ProgressViews(NamedTuple):
    """Where the progress of a training is shown: its bar and the run's trackers."""

    advance: Callable[..., None]
    curve: TrainingCurve


def _fit(trainer: TorchTrainer, training: Training, board: Any, shown: ProgressViews) -> dict[str, Any]:
    """Wait for a training and show its progress. In a thread of its own it leaves Ctrl-C to this process."""
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except Exception as error:  # noqa: BLE001  raised again below, in the thread that waits for it
            outcome.append(error)

    thread = threading.Thread(target=fit, name=f"training-{training.name}", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(REPORT_EVERY_S)
            _show(training, board, shown)
        _show(training, board, shown)  # it may have ended between the last look and the question whether it has
    finally:
        end_controller(board, thread.is_alive())
        ray.kill(board)
    (result,) = outcome
    if isinstance(result, Exception):
        raise _cause(result) from result
    return result.return_value


def _show(training: Training, board: Any, shown: ProgressViews) -> None:
    begun, step, metrics, messages = ray.get(board.read.remote())
    shown.advance(step, metrics)
    if begun is not None:
        shown.curve.restart(begun)
    shown.curve.log(step, metrics)
    for message in messages:
        emit("checkpoint.resumed", message, stage=training.name)


def _cause(error: Exception) -> Exception:
    """The UserError that a worker raised, if any, instead of Ray Train's summary of all workers."""
    failures = error.worker_failures.values() if isinstance(error, train.WorkerGroupError) else ()
    for failure in failures:
        raised = raised_in_worker(failure)
        if isinstance(raised, UserError):
            return raised
    return RuntimeError(f"a training on workers failed; raise faults.max_start_failures if they were lost: {error}")


# -- in a worker -------------------------------------------------------------------------------------------------


def _work(settings: dict[str, Any]) -> dict[str, Any]:
    """The training function of Ray Train."""
    config: Config = settings["config"]
    board, here = settings["board"], train.get_context()
    configure_process(config.cluster.threads_per_process)
    rank = here.get_world_rank()
    checkpoints = ReportedCheckpoints(
        settings["folder"],
        config.checkpoint.every_training_steps,
        config.checkpoint.keep,
        (lambda message: board.add_message.remote(message)) if rank == 0 else (lambda message: None),
        rank,
    )
    share = WorkerShare(rank, here.get_world_size(), _exchanging)
    reporter = ProgressReporter(board)
    progress: Progress = reporter.report if rank == 0 else lambda step, metrics: None
    course = Course(settings["job"], share, get_device(), checkpoints)
    if rank == 0:
        board.begin.remote(course.num_steps)
    course.advance(progress)
    metrics = course.finish()
    reporter.close()
    return metrics


def _exchanging(module: nn.Module) -> nn.Module:
    # Published networks have unused layers; these get no gradient in one process either.
    return prepare_model(module, parallel_strategy_kwargs={"find_unused_parameters": True})


class ProgressReporter:
    """Sends progress to the board, at most once every `REPORT_EVERY_S`."""

    def __init__(self, board: Any):
        self._board, self._reported_at = board, 0.0
        self._latest: tuple[int, dict[str, float]] | None = None

    def report(self, step: int, metrics: dict[str, float]) -> None:
        self._latest = (step, metrics)
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = time.monotonic()
            self._board.report.remote(step, metrics)

    def close(self) -> None:
        if self._latest is not None:
            ray.get(self._board.report.remote(*self._latest))


@dataclass(frozen=True)
class ReportedCheckpoints(TrainingCheckpoints):
    """Checkpoints that the first worker writes, all workers read and that are reported to Ray Train."""

    rank: int = 0

    def save(self, step: int, parts: Parts, numbers: Numbers) -> None:
        if self.folder is None or not self.every_steps or step % self.every_steps:
            return
        checkpoint = None
        if self.rank == 0:
            super().save(step, parts, numbers)
            checkpoint = train.Checkpoint(str(self.folder / f"step-{step:06d}"))
        metrics = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
        train.report(
            {"step": step, **metrics},
            checkpoint=checkpoint,
            checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD,
        )

    def restore(self, parts: Parts) -> tuple[int, Numbers] | None:
        """Raises RuntimeError where workers found different checkpoints."""
        restored = super().restore(parts)
        if dist.is_initialized() and dist.get_world_size() > 1:
            steps: list[int] = [0] * dist.get_world_size()
            dist.all_gather_object(steps, restored[0] if restored else 0)
            if len(set(steps)) > 1:
                raise RuntimeError(
                    f"the workers found checkpoints of the steps {steps} in {self.folder}; all nodes must see the same "
                    "storage"
                )
        return restored
