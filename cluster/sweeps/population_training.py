"""Runs a population to its end: all trials to the next turn, then takeovers, as long as there are updates.

A loop of our own, and not Tune's PopulationBasedTraining: that keeps what it knows of its trials in memory only (a sweep
that is restored has lost it), draws from generators that a whole process shares, and compares a trial with what others
happen to have reported. Here trials wait for each other at a turn, whose record is written before anything follows
from it. Ray runs the processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from rich.console import Console

from cluster.recipes.optimize import OPTIMIZE
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.reuse.branch import branch_run, updates_taken_over
from cluster.runtimes.resources import Resources, ray_options
from cluster.sweeps.population import Population, Settings, Turn
from cluster.sweeps.space import Space, setting
from cluster.sweeps.trial import TRIALS, begin_run, end_of_log, make_folder, stop_run
from wmpo_ray.config.loading import overridden
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import remove_leftovers
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

MOST_RETRIES = 3  # of a trial whose process or node was lost: its run goes on from its checkpoint


class Search(NamedTuple):
    """What a population is trained by. `options`: of `wmpo run`, for every trial."""

    config: Config
    space: Space
    out: Path
    metric: str
    resources: Resources
    options: Sequence[str] = ()
    console: Console | None = None

    def folder(self, name: str) -> Path:
        return self.out / TRIALS / name


def train_population(search: Search) -> Population:
    """Go on where the record of the population ends; returns it whole. Raises UserError where every trial fails."""
    config, space, out = search.config, search.space, search.out
    (out / TRIALS).mkdir(exist_ok=True)
    remove_leftovers(out / TRIALS)
    allows = partial(can_run, config)
    population = Population.read(out, space, allows)
    population.write(out)
    for name, settings in population.first.items():
        make_folder(out, search.folder(name), overrides_of(settings))
    if population.turns:  # all that follows from those before is there
        take_over(search, population)
    for update in turns_of(config, space)[len(population.turns) :]:
        is_last = update == config.training.num_updates
        failed = run_all(search, list(population.first), update, is_last)
        success = {
            name: None if name in failed else success_at(search.folder(name), search.metric, update)
            for name in population.first
        }
        if all(value is None for value in success.values()):
            problem = next(iter(failed.values()), f"{search.metric} was not measured")
            raise UserError(f"no trial came to update {update}: {problem}")
        population = population.with_turn(space, update, success, allows)
        if is_last:  # nobody goes on from here
            turn = population.turns[-1].model_copy(update={"takeovers": ()})
            population = population.model_copy(update={"turns": (*population.turns[:-1], turn)})
        population.write(out)
        take_over(search, population)
        if search.console is not None:
            search.console.print(described(population.turns[-1]), soft_wrap=True, highlight=False)
    return population


def described(turn: Turn) -> str:
    """In one line."""
    known = [value for value in turn.success.values() if value is not None]
    text = f"update {turn.update}: {len(known)} trials of {len(turn.success)}, the best with {max(known):.1%}"
    return "; ".join([text, *(f"{each.trial} takes over from {each.source}" for each in turn.takeovers)])


def can_run(config: Config, settings: Settings) -> bool:
    """Whether a run would take these settings together; each of them alone has been tried."""
    try:
        changed = overridden(config, overrides_of(settings))
        for step in steps_of(changed):
            if step.stage.run is OPTIMIZE.run:
                step.stage.check(changed, True)
    except ConfigError:
        return False
    return True


def turns_of(config: Config, space: Space) -> list[int]:
    """The updates at which trials wait for each other; the last is the end."""
    num_updates = config.training.num_updates
    return [*range(space.search.interval, num_updates, space.search.interval), num_updates]


def success_at(folder: Path, metric: str, update: int) -> float | None:
    """The last that was measured until an update."""
    values = [line[metric] for line in JsonlTracker.read(folder) if metric in line and line["update"] <= update]
    return float(values[-1]) if values and values[-1] is not None else None


def take_over(search: Search, population: Population) -> None:
    """What the last turn decided, where it is not done yet: a kill may have come between two of them."""
    turn = population.turns[-1]
    for each in turn.takeovers:
        folder, config = search.folder(each.trial), search.config
        if updates_taken_over(folder) != turn.update:
            changes = [*overrides_of(each.settings), setting(length_of(config), config.training.num_updates)]
            branch_run(search.folder(each.source), folder, changes, replace=True)


def overrides_of(settings: Settings) -> list[str]:
    return [setting(key, value) for key, value in sorted(settings.items())]


def length_of(config: Config) -> str:
    return f"{config.algorithm.section}.num_updates"


def run_all(search: Search, names: Sequence[str], update: int, is_last: bool) -> dict[str, str]:
    """Every trial to an update, the last time to the end of its recipe; returns what stopped those that failed."""
    length = setting(length_of(search.config), update)
    own = [*search.options, "--set", length, *(() if is_last else ("--until", "optimize"))]
    remote = ray.remote(run_trial).options(max_retries=MOST_RETRIES, **ray_options(search.resources))
    waiting, running, failed = list(names), dict[Any, str](), dict[str, str]()
    while waiting or running:
        while waiting and len(running) < (search.space.search.at_once or len(names)):
            name = waiting.pop(0)
            running[remote.remote(str(search.folder(name)), own)] = name
        for ref in ray.wait(list(running), num_returns=1)[0]:
            name = running.pop(ref)
            try:
                problem = ray.get(ref)
            except RayError as error:  # its process or node was lost more often than it is begun again
                problem = str(error).partition("\n")[0]
            if problem:
                failed[name] = f"{name}: {problem}"
    return failed


def run_trial(folder: str, options: list[str]) -> str:
    """Where there is room for it; returns the end of its log if it fails, "" otherwise."""
    process = begin_run(Path(folder), options)
    try:
        code = process.wait()
    finally:
        stop_run(process)
    return f"ended with {code}: {end_of_log(Path(folder))}" if code else ""


def lineage_of(population: Population, name: str) -> list[dict[str, Any]]:
    """The stretches of a trial's training, each with the trial that did it and its settings, to the last turn."""
    if not population.turns:
        return []
    *before, last = population.turns
    owner, found = name, [{"until": last.update, "trial": name, "settings": population.settings[name]}]
    for i in range(len(before) - 1, -1, -1):
        turn = before[i]
        owner = next((each.source for each in turn.takeovers if each.trial == owner), owner)
        settings = population.model_copy(update={"turns": population.turns[:i]}).settings[owner]
        if (owner, settings) != (found[-1]["trial"], found[-1]["settings"]):
            found.append({"until": turn.update, "trial": owner, "settings": settings})
    return found[::-1]
