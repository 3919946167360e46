"""`wmpo tune`: a sweep over settings, in which trials share the stages that no searched setting changes.

With ASHA on Ray Tune: the worse end early. With population-based training the worse take over from the better.

OUT/shared        a run up to the last stage that all trials have in common
OUT/trials/ID     a fork of it for each trial, which goes on with its own settings
OUT/sweep.json    the settings and the success of every trial; OUT/report/index.html shows them
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from cluster.host.job import cluster_address
from cluster.recipes.pipeline import run_pipeline
from cluster.runtimes.resources import Resources, node_selector
from cluster.runtimes.start import start_runtime
from cluster.sweeps.population import Population
from cluster.sweeps.population_training import Search, lineage_of, train_population
from cluster.sweeps.search_checks import check_folder, check_search, longest, metric_of
from cluster.sweeps.space import FILE, Range, Space, last_shared, ranges_of
from cluster.sweeps.trial import BASE, SHARED, SUCCESS, TRIALS, UPDATE, SweepTrial, result_of
from cluster.workers.placement import ACCELERATOR_SHARE, role_resources
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.runs.folder import LOCK
from wmpo_ray.runs.folder_lock import FolderLock, LockedError
from wmpo_ray.watch.sweep_page import SWEEP, write_sweep_page

STATE = "tune"


def sweep(
    config: Config,
    space: Space,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the trials, or go on with them; returns what `sweep.json` holds.

    `force`: trials go on past a failed gate. Raises UserError for settings that a run would refuse, and for a folder that
    holds another sweep, or that another process works in.
    """
    until = last_shared(config, space)
    check_search(config, space)
    check_folder(out, config, space, resume)
    with locked(out):
        return _sweep(config, space, out, until, force, console)


def _sweep(
    config: Config, space: Space, out: Path, until: str | None, force: bool, console: Console | None
) -> dict[str, Any]:
    """In a folder that is ours."""
    atomic_write(out / BASE, config_to_toml(config))
    atomic_write(out / FILE, space.as_json())
    if until is not None:
        run_pipeline(config, out / SHARED, resume=True, serial=True, force=force, until=until, console=console)
    runtime = start_runtime(False, cluster_address(config))
    try:
        trials = train(config, space, out, ["--force"] if force else [], console)
    finally:
        runtime.shutdown()
    found = described(config, space, until) | {"trials": trials}
    atomic_write(out / SWEEP, json.dumps(found, indent=1) + "\n")
    write_sweep_page(out)
    return found


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The folder, made if need be, for one process at a time. Raises UserError where another one has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(out / LOCK)
    except LockedError as error:
        raise UserError(f"--out {out} is in use by {error}; wait for it, or choose another folder") from error
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from error
    with closing(lock):
        yield


def process_resources(config: Config) -> Resources:
    """One process plays every role in turn, so it needs what the greediest role does, by the table `[placement]`."""
    places = [place for _, place in role_resources(config).values()]
    kinds = sorted({place.accelerator_type for place in places if place.accelerator_type})
    return Resources(
        max(1.0, *(place.num_cpus for place in places)),
        min(sum(place.num_gpus for place in places), 1.0),
        kinds[0] if kinds else "",  # no node has two
        tuple(dict.fromkeys(label for place in places for label in place.labels)),
    )


def trial_resources(config: Config) -> tune.PlacementGroupFactory:
    """The same as Tune takes them."""
    needed = process_resources(config)
    bundle = {"CPU": needed.num_cpus}
    if needed.num_gpus:
        bundle["GPU"] = needed.num_gpus
    if needed.accelerator_type:
        bundle[f"accelerator_type:{needed.accelerator_type}"] = ACCELERATOR_SHARE
    labels = node_selector(needed.labels)
    return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [labels]} if labels else {}))


def train(
    config: Config, space: Space, out: Path, options: Sequence[str], console: Console | None
) -> list[dict[str, Any]]:
    """Run what is missing; returns what became of every trial, the best first."""
    if space.search.scheduler == "pbt":
        metric, needed = metric_of(config, space), process_resources(config)
        population = train_population(Search(config, space, out, metric, needed, options, console))
        trials = [trial_of(out, population, name) for name in population.first]
    else:
        fit(config, space, out, options)
        trials = collect(out)
    return sorted(trials, key=_rank)


def trial_of(out: Path, population: Population, name: str) -> dict[str, Any]:
    """A trial of a population. `settings`: those that it ended with; `lineage`: those before, and who trained with them."""
    final = result_of(out / TRIALS / name).get("final_success")
    return {
        "name": name,
        "settings": population.settings[name],
        "updates": population.turns[-1].update,
        "success": population.turns[-1].success[name],
        "final": final,
        "state": "done" if final else "failed",
        "lineage": lineage_of(population, name),
    }


def fit(config: Config, space: Space, out: Path, options: Sequence[str]) -> None:
    """Let Tune run what is missing."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable: Any = tune.with_resources(SweepTrial, trial_resources(config))
    state = out.resolve() / STATE
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        tuner.fit()
        return
    search, num_updates = space.search, longest(config, space)
    tuner = tune.Tuner(
        trainable,
        param_space={
            "root": str(out.resolve()),
            "metric": metric_of(config, space),
            "options": list(options),
            "settings": {key: domain(each) for key, each in space.ranges.items()},
        },
        tune_config=tune.TuneConfig(
            num_samples=search.trials,
            search_alg=BasicVariantGenerator(max_concurrent=search.at_once, random_state=search.seed),
            scheduler=ASHAScheduler(
                time_attr=UPDATE,
                metric=SUCCESS,
                mode="max",
                max_t=num_updates + 1,  # whoever comes to the end is evaluated there
                grace_period=min(search.min_updates, num_updates),
                reduction_factor=search.reduction,
            ),
        ),
        run_config=tune.RunConfig(name=STATE, storage_path=str(out.resolve()), verbose=0),
    )
    tuner.fit()


def domain(each: Range) -> Any:
    """Of Tune."""
    if each.choice is not None:
        return tune.choice(list(each.choice))
    if each.integers is not None:
        return tune.randint(each.integers[0], each.integers[1] + 1)
    return tune.loguniform(*each.loguniform) if each.loguniform is not None else tune.uniform(*each.examples)


def collect(out: Path) -> list[dict[str, Any]]:
    """What became of every trial of Tune's."""
    grid = tune.Tuner.restore(str(out.resolve() / STATE), SweepTrial).get_results()
    trials: list[dict[str, Any]] = []
    ranges = ranges_of(out)
    for each in grid:
        metrics, name = each.metrics or {}, str((each.metrics or {}).get("trial_id", Path(each.path).name))
        result = result_of(out / TRIALS / name)
        settings = {key: ranges[key].rounded(value) for key, value in (each.config or {}).get("settings", {}).items()}
        done = bool(result.get("final_success"))
        trials.append(
            {
                "name": name,
                "settings": settings,
                "updates": int(metrics.get(UPDATE, 0)),
                "success": metrics.get(SUCCESS),
                "final": result.get("final_success") if done else None,
                "state": "failed" if each.error else "done" if done else "stopped",
            }
        )
    return trials


def described(config: Config, space: Space, until: str | None) -> dict[str, Any]:
    """What `sweep.json` says of the whole."""
    return {
        "name": config.name,
        "metric": metric_of(config, space),
        "shared_until": until,
        "num_updates": config.training.num_updates,
        "ranges": {key: each.model_dump(mode="json", exclude_none=True) for key, each in space.ranges.items()},
    }


def _rank(trial: dict[str, Any]) -> tuple[bool, float, str]:
    """Those that were evaluated, then by success on the way."""
    value = trial["success"] if trial["final"] is None else trial["final"]["value"]
    return trial["final"] is None, -(value or 0.0), trial["name"]  # Tune's own order is not always the same
