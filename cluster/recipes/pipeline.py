"""Runs a recipe: each step reads the results of earlier steps from the run's folder; up-to-date steps are skipped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cluster.events.event_log import emit, event_log
from cluster.events.progress import Reporter
from cluster.events.status import Status
from cluster.host.job import cluster_address, job_id
from cluster.host.preemption import is_leaving
from cluster.host.preflight import preflight
from cluster.recipes.context import RunContext
from cluster.recipes.receipts import inputs_of
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.run_plan import Action, Planned, check_later, check_resume, is_within, plan_run, source_of
from cluster.recipes.simulator_needs import check_simulator_of
from cluster.recipes.stage import Step
from cluster.recording.recorder import check_runtime_env
from cluster.runtimes.start import await_cluster, start_runtime
from cluster.workers.placement import check_placement
from wmpo_ray.algorithms.base import algorithm_class
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.report.html import write_report
from wmpo_ray.runs.folder import CONFIG, RunFolder, remove_all
from wmpo_ray.runs.receipt import write_receipt


def run_pipeline(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    redo: bool | None = None,
    serial: bool = False,
    force: bool = False,
    only: str | None = None,
    until: str | None = None,
    console: Console | None = None,
    level: int = logging.INFO,
) -> dict[str, Any]:
    """Run every step whose result is missing or made from other settings; returns the run's summary.

    `only` runs one step (earlier ones must be done), `until` stops after one. `resume` continues an interrupted step,
    `redo` (None: as `resume`) replaces results that depend on changed settings, `force` continues past a failed gate.
    Progress, and events from `level` on, go to `console`. Raises UserError for anything the user can fix.
    """
    steps, address = steps_of(config), "" if serial else cluster_address(config)
    check_run(config, serial, address, steps, only, until)
    is_new, asked = not (out / CONFIG).exists(), steps_in(steps, only, until)
    if is_new:  # before anything is created there
        check_steps(config, serial, asked)
    goes_on, stages = resume and not is_new, {step.stage.name for step in asked}
    preflight(config, out, serial=serial, address=address, stages=stages, awaits_cluster=goes_on)
    if goes_on and address:
        await_return(config, out, address, console, level)
    configure_process(config.cluster.threads_per_process)
    with open_folder(out, config, steps, only) as folder:
        wanted = wanted_of(plan := plan_run(folder, config, steps), only, until)
        check_changes(folder, plan, wanted, resume, resume if redo is None else redo)
        check_steps(config, serial, due(wanted, only), simulator=not is_new)  # it takes seconds: not twice
        folder.accept(config, [step.label for step in steps])
        with watched(folder, plan) as status, event_log(folder.path, console, level, status.fault):
            reporter = Reporter(console, level > logging.INFO, status.progress)
            start = partial(start_runtime, serial, address, config.faults.cluster_timeout_s)
            context = RunContext(config, folder, reporter, start, force, status)
            run_steps(context, wanted, plan, again=only is not None)
            return conclude(folder, config)


def await_return(config: Config, out: Path, address: str, console: Console | None, level: int) -> None:
    """Where a run goes on, what ended it may have ended the head of its cluster too, which then comes back as it does.

    A run that has not begun does not wait: its address is more likely wrong. Raises UserError where nothing came back.
    """
    with event_log(out, console, level):
        await_cluster(address, config.faults.cluster_timeout_s)


def conclude(folder: RunFolder, config: Config) -> dict[str, Any]:
    """Write what shows a run, and what it can be verified by; returns its summary."""
    write_report(folder.path)
    write_receipt(folder, inputs_of(config))
    return folder.summary


def steps_in(steps: Sequence[Step], only: str | None, until: str | None) -> list[Step]:
    """The requested steps, whether done or not."""
    labels = [step.label for step in steps]
    last = labels.index(until) + 1 if until else len(steps)
    return [step for step in steps[:last] if only in (None, step.label)]


def check_run(
    config: Config, serial: bool, address: str, steps: Sequence[Step], only: str | None, until: str | None
) -> None:
    """Raises UserError or ConfigError for problems that do not depend on the folder."""
    labels = [step.label for step in steps]
    for name in (only, until):
        if name is not None and name not in labels:
            raise UserError(f"unknown stage {name!r}; the stages are {', '.join(labels)}")
    check_runtime_env(config, serial)
    algorithm_class(config.algorithm.kind)  # it must be known
    if not serial and not address:  # other clusters are checked once connected
        here = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
        check_placement(config, here)


@contextmanager
def open_folder(out: Path, config: Config, steps: Sequence[Step], only: str | None) -> Iterator[RunFolder]:
    """Raises UserError for a step alone that needs others, where nothing is: no folder is made for it."""
    labels = [step.label for step in steps]
    if only is not None and not (out / CONFIG).exists() and (before := labels[: labels.index(only)]):
        raise needs_first(only, before)
    folder = RunFolder.open(out, config)
    try:
        yield folder
    finally:
        folder.close()


def needs_first(stage: str, missing: Sequence[str]) -> UserError:
    return UserError(f"stage {stage} needs {', '.join(missing)} first; run them, or `wmpo run` for all")


def check_changes(
    folder: RunFolder, plan: Sequence[Planned], wanted: Sequence[Planned], resume: bool, redo: bool
) -> None:
    """Raises UserError for results that would be resumed or replaced without leave, now or by a later command."""
    check_resume(folder, wanted, resume, redo)
    check_later(folder, [each for each in plan if each not in wanted], redo)


def wanted_of(plan: Sequence[Planned], only: str | None, until: str | None) -> list[Planned]:
    """The steps to run. Raises UserError where `only` needs a step that is not done."""
    labels = [planned.label for planned in plan]
    if only is None:
        return list(plan[: labels.index(until) + 1 if until else None])
    index = labels.index(only)
    missing = [
        each.label + (f" ({each.reason})" if each.reason else "")
        for each in plan[:index]
        if each.action is not Action.KEEP
    ]
    if missing:
        raise needs_first(only, missing)
    return [plan[index]]


def due(wanted: Sequence[Planned], only: str | None) -> list[Step]:
    """Those that will be run: one that was asked for alone is run again."""
    return [each.step for each in wanted if only or each.action is not Action.KEEP]


def check_steps(config: Config, serial: bool, steps: Sequence[Step], simulator: bool = True) -> None:
    """Raises UserError or ConfigError for what a later stage would reject, before the first one begins."""
    if simulator:
        check_simulator_of(config, steps)
    for step in steps:
        step.stage.check(config, serial)


@contextmanager
def watched(folder: RunFolder, plan: Sequence[Planned]) -> Iterator[Status]:
    """Keep `status.json` up to date, and record how the run ended."""
    status = Status(folder.path, job=job_id(), stages=[planned.label for planned in plan])
    state = "failed"
    try:
        yield status
        done = done_labels(folder, plan)
        state = "done" if len(done) == len(plan) else "stopped"
        status.update(stages_done=done)
    except KeyboardInterrupt:
        state = "preempted" if is_leaving() else "stopped"
        raise
    finally:
        status.close(state)


def done_labels(folder: RunFolder, plan: Sequence[Planned]) -> list[str]:
    """The steps whose results exist and are made from the current settings."""
    sources = {planned.label: source_of(folder.record(planned.label)) for planned in plan}
    return [each.label for each in plan if (made := sources[each.label]) and made.result == each.source.result]


def run_steps(context: RunContext, wanted: Sequence[Planned], plan: Sequence[Planned], again: bool) -> None:
    """Run steps in order, and close the context."""
    with closing(context):
        for planned in wanted:
            run_step(context, planned, plan, again)


def run_step(context: RunContext, planned: Planned, plan: Sequence[Planned], again: bool) -> None:
    """Run one step, unless its result is up to date and `again` is False."""
    folder, label, stage = context.folder, planned.label, planned.step.stage
    own = context.of_round(planned.step.round)
    own.make_folders()
    if planned.action is Action.KEEP:
        tidy(own, planned)
        if not again:
            emit("stage.skipped", f"{label:<13} done before", stage=label)
            if context.force and stage.name == "gate" and (without := folder.metrics(label).get("left_out")):
                names = ", ".join(without)
                text = f"{names}: stays left out; --force counts when the gate runs, which another bound in [gate] brings about"
                emit("task.left_out", text, logging.WARNING, stage=label)
            return
    if context.status is not None:
        context.status.begin_stage(label, done_labels(folder, plan))
    prepare(own, planned)
    emit("stage.started", f"{label:<13} ...", logging.DEBUG, stage=label)
    started = time.monotonic()
    metrics = stage.run(own)
    seconds = time.monotonic() - started
    folder.finish(label, seconds, metrics, planned.source._asdict())
    clear(own, planned)
    numbers = {key: round(value, 4) for key, value in metrics.items() if isinstance(value, (int, float))}
    shown = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
    facts: dict[str, Any] = {**numbers, "stage": label, "seconds": round(seconds, 3)}
    emit("stage.done", f"{label:<13} {seconds:6.1f} s  {shown}", **facts)


# -- the state of a step -------------------------------------------------------------------------------------------


def state_paths(context: RunContext, planned: Planned) -> list[Path]:
    """Existing files that the step resumes from after an interruption."""
    return [path for pattern in planned.step.stage.state for path in sorted(context.root.glob(pattern))]


def result_paths(context: RunContext, planned: Planned) -> list[Path]:
    """Existing result files of the step."""
    return [path for name in planned.step.stage.makes if (path := context.root / name).exists()]


def prepare(context: RunContext, planned: Planned) -> None:
    """Note that the step begins. Set aside a result that will be replaced, and state that it does not resume from."""
    folder, label, source = context.folder, planned.label, planned.source._asdict()
    if planned.action.changes_results:
        emit("stage.redone", f"{label:<13} {planned.action.value}: {planned.reason}", stage=label)
    results = result_paths(context, planned) if folder.record(label) is not None else []
    if planned.action is Action.REDO:
        folder.begin(label, source, is_clear=False)
        folder.set_aside(label, [*state_paths(context, planned), *results])
    folder.begin(label, source)
    if planned.action in (Action.EXTEND, Action.RESUME) and not folder.has_aside(label):
        folder.set_aside(label, results)


def tidy(context: RunContext, planned: Planned) -> None:
    """Finish a cleanup that a kill interrupted: discard what was begun in place of a valid result."""
    begun = source_of(context.folder.begun(planned.label))
    if begun is not None:
        goes_further = begun.key == planned.source.key and is_within(planned.source, begun)
        state = [] if goes_further else state_paths(context, planned)
        context.folder.bring_back(planned.label, [*state, *result_paths(context, planned)])
    clear(context, planned)


def clear(context: RunContext, planned: Planned) -> None:
    """Delete replaced results, and the state of the finished step unless the stage keeps it."""
    context.folder.drop_aside(planned.label)
    if not planned.step.stage.keeps_state:
        remove_all(state_paths(context, planned))
