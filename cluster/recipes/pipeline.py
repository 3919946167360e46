"""The stages of a run in their order: each reads what those before it left in the run's folder, and is skipped once done."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cluster.events.event_log import emit, event_log
from cluster.events.progress import Reporter
from cluster.events.status import Status
from cluster.host.job import cluster_address, job_id
from cluster.host.preemption import is_leaving
from cluster.recipes import stages
from cluster.recipes.context import RunContext
from cluster.runtimes.start import start_runtime
from cluster.workers.learner_group import check_ranks
from cluster.workers.placement import check_placement
from learners.supervised.loop import check_batch
from wmpo_ray.config.cluster import bounds
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.registry import check_kinds, load_policy, make_environment
from wmpo_ray.report.html import write_report
from wmpo_ray.rollout.evaluation import rollout_policy
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.world_models.diffusion import PRETRAINED_DIR

STAGE_FUNCTIONS: dict[str, Callable[[RunContext], dict[str, Any]]] = {
    "demos": stages.demos,
    "policy": stages.policy,
    "collect": stages.collect,
    "world-model": stages.world_model,
    "reward-model": stages.reward_model,
    "gate": stages.gate,
    "optimize": stages.optimize,
    "evaluate": stages.evaluate,
}
STAGES = tuple(STAGE_FUNCTIONS)


def run_pipeline(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    serial: bool = False,
    force: bool = False,
    only: str | None = None,
    until: str | None = None,
    console: Console | None = None,
    level: int = logging.INFO,
) -> dict[str, Any]:
    """Run every stage that is not done yet and return the run's summary.

    `only` runs one stage (the ones before it must be done), `until` stops after one. `force` goes on past a gate that
    is not met. `console`: where to tell of progress, and of events from `level` on. Raises UserError for anything the
    user can put right.
    """
    for name in (only, until):
        if name is not None and name not in STAGES:
            raise UserError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    check_kinds(config)
    address = "" if serial else cluster_address(config)
    if not serial and not address:  # another cluster is asked once it is connected
        here = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
        check_placement(config, here)
    wanted = [stage for stage in STAGES[: STAGES.index(until) + 1 if until else None] if only in (None, stage)]
    check_processes(config, serial, wanted)
    configure_process(config.cluster.threads_per_process)
    with (
        open_folder(out, config, resume) as folder,
        watched(folder) as status,
        event_log(folder.path, console, level, status.fault),
    ):
        reporter = Reporter(console, level > logging.INFO, status.progress)
        context = RunContext(config, folder, reporter, lambda: start_runtime(serial, address), force, status)
        try:
            check_pretrained(config, [stage for stage in wanted if not folder.is_done(stage)])
            for stage in wanted:
                _run_stage(context, stage, again=only is not None)
        finally:
            context.close()
        write_report(folder.path)
        return folder.summary


def check_processes(config: Config, serial: bool, wanted: Sequence[str]) -> None:
    """Raises UserError for numbers of processes that a stage would refuse, hours after the first one began."""
    if "optimize" in wanted:
        check_ranks(config, serial)
    if serial:
        return
    for stage, section, settings in (
        ("policy", "policy.cloning", config.policy.cloning),
        ("world-model", "world_model.alignment", config.world_model.alignment),
        ("reward-model", "reward", config.reward),
    ):
        if stage in wanted and settings.steps:
            check_batch(settings, section, bounds(config.cluster.training_workers)[1])


def check_pretrained(config: Config, wanted: Sequence[str]) -> None:
    """Raises UserError for weights that a stage begins with and that are nowhere, before the stages in front of it."""
    world, verify = config.world_model, config.reward.verify
    for stage, key, path in (
        ("policy", "policy.pretrained", config.policy.pretrained),
        ("world-model", "world_model.pretrained", world.pretrained),
        ("world-model", "reward.verify.pretrained", verify.pretrained if verify.enabled else ""),
        ("reward-model", "reward.pretrained", config.reward.pretrained),
    ):
        if stage in wanted and path and not (Path(path).exists() or (PRETRAINED_DIR / path).exists()):
            raise UserError(f"{key} = {path}: there is nothing; set {key} to the folder of a model")


@contextmanager
def watched(folder: RunFolder) -> Iterator[Status]:
    """Keep `status.json` up to date, and say how the run ended."""
    status = Status(folder.path, job=job_id(), stages=list(STAGES))
    state = "failed"
    try:
        yield status
        state = "done" if all(map(folder.is_done, STAGES)) else "stopped"
        status.update(stages_done=[stage for stage in STAGES if folder.is_done(stage)])
    except KeyboardInterrupt:
        state = "preempted" if is_leaving() else "stopped"
        raise
    finally:
        status.close(state)


@contextmanager
def open_folder(out: Path, config: Config, resume: bool):
    folder = RunFolder.open(out, config, resume)
    try:
        yield folder
    finally:
        folder.close()


def _run_stage(context: RunContext, stage: str, again: bool) -> None:
    folder = context.folder
    if folder.is_done(stage) and not again:
        emit("stage.skipped", f"{stage:<13} done before", stage=stage)
        return
    missing = [name for name in STAGES[: STAGES.index(stage)] if not folder.is_done(name)]
    if missing:
        raise UserError(f"stage {stage} needs {', '.join(missing)} first; run them, or `wmpo run` for all")
    if context.status is not None:
        context.status.begin_stage(stage, [name for name in STAGES if folder.is_done(name)])
    emit("stage.started", f"{stage:<13} ...", logging.DEBUG, stage=stage)
    started = time.monotonic()
    figures = STAGE_FUNCTIONS[stage](context)
    seconds = time.monotonic() - started
    folder.finish(stage, seconds, figures)
    numbers = {key: round(value, 4) for key, value in figures.items() if isinstance(value, (int, float))}
    told = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
    text = f"{stage:<13} {seconds:6.1f} s  {told}"
    facts: dict[str, Any] = {**numbers, "stage": stage, "seconds": round(seconds, 3)}
    emit("stage.done", text, **facts)


def evaluate_policy(
    config: Config,
    out: Path,
    policy_dir: Path | None = None,
    num_starts: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Success of a saved policy on held-out start states with its 95% interval; default: the run's final policy."""
    configure_process(config.cluster.threads_per_process)
    path = policy_dir or Path(out) / "models" / "policy"
    if not path.is_dir():
        raise UserError(f"there is no policy at {path}; name one with --policy, or run the stages first")
    count = num_starts or config.evaluation.num_starts
    policy = load_policy(config, str(path))
    environment = make_environment(config.environment)
    seeds = start_seeds("evaluate", count, config.seed)
    with torch.no_grad(), Reporter(console).bar("real episodes", count) as advance:
        episodes = rollout_policy(
            policy,
            environment,
            seeds,
            config.evaluation.temperature,
            (config.seed, "evaluate"),
            keep_frames=False,
            progress=advance,
        )
    low, high = wilson_interval(int(episodes.success.sum()), count)
    failures = {name: float((flags & ~episodes.success).mean()) for name, flags in episodes.failures.items()}
    return {"value": float(episodes.success.mean()), "low": low, "high": high, "num": count, "failures": failures}
