"""`wmpo tune`: a sweep over settings on Ray Tune, in which trials share the stages that no searched setting changes.

OUT/shared        a run up to the last stage that all trials have in common
OUT/trials/ID     a fork of it for each trial, which goes on with its own settings
OUT/sweep.json    the settings and the success of every trial; OUT/report/index.html shows them
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from cluster.host.job import cluster_address
from cluster.recipes.pipeline import run_pipeline
from cluster.runtimes.start import start_runtime
from cluster.sweeps.space import Range, Space, last_shared, rounded
from cluster.sweeps.trial import BASE, SHARED, SUCCESS, TRIALS, UPDATE, SweepTrial, result_of
from cluster.workers.placement import ACCELERATOR_SHARE, role_resources
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.registry import check_simulator
from wmpo_ray.watch.sweep_page import SWEEP, write_sweep_page

STATE, SPACE = "tune", "space.json"
REAL = "real/success_rate"


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
    holds another sweep.
    """
    until = last_shared(config, space)
    check_folder(out, config, space, resume)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / BASE, config_to_toml(config))
    atomic_write(out / SPACE, space.as_json())
    if until is not None:
        run_pipeline(config, out / SHARED, resume=True, serial=True, force=force, until=until, console=console)
    runtime = start_runtime(False, cluster_address(config))
    try:
        fit(config, space, out, ["--force"] if force else [])
    finally:
        runtime.shutdown()
    found = collect(out, config, space, until)
    atomic_write(out / SWEEP, json.dumps(found, indent=1) + "\n")
    write_sweep_page(out)
    return found


def check_folder(out: Path, config: Config, space: Space, resume: bool) -> None:
    """Raises UserError where the folder holds something else, or a sweep that is not to be gone on with."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / SPACE).is_file():
        raise UserError(f"--out {out} holds something else than a sweep; choose another folder")
    if (out / SPACE).read_text() != space.as_json() or (out / BASE).read_text() != config_to_toml(config):
        raise UserError(f"--out {out} holds a sweep of other settings or another space; choose another folder")
    if not resume:
        raise UserError(f"--out {out} holds this sweep already; add --resume to go on with it")


def metric_of(config: Config, space: Space) -> str:
    """What trials are compared by on the way. Raises UserError for real success that is not measured."""
    real = config.evaluation.every_updates > 0 and _has_simulator(config)
    if space.search.metric == "real" and not real:
        raise UserError(
            'search.metric = "real": real success is not measured on the way; set evaluation.every_updates, or search by '
            '"imagined"'
        )
    if space.search.metric == "imagined" or not real:
        return "imagined/verified_success_rate" if config.reward.verify.enabled else "imagined/success_rate"
    return REAL


def _has_simulator(config: Config) -> bool:
    try:
        check_simulator(config)
    except ConfigError:
        return False
    return True


def trial_resources(config: Config) -> tune.PlacementGroupFactory:
    """One process plays every role in turn, so it needs what the greediest role does, by the table `[placement]`."""
    places = [place for _, place in role_resources(config).values()]
    gpus = sum(place.num_gpus for place in places)
    bundle = {"CPU": max(1.0, *(place.num_cpus for place in places))}
    if gpus:
        bundle["GPU"] = min(gpus, 1.0)
    kinds = {place.accelerator_type for place in places if place.accelerator_type}
    bundle |= {f"accelerator_type:{kind}": ACCELERATOR_SHARE for kind in kinds}
    labels = dict(label.split("=", 1) for place in places for label in place.labels)
    return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [labels]} if labels else {}))


def fit(config: Config, space: Space, out: Path, options: Sequence[str]) -> None:
    """Let Tune run what is missing."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable: Any = tune.with_resources(SweepTrial, trial_resources(config))
    state = out.resolve() / STATE
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        tuner.fit()
        return
    search, num_updates = space.search, config.training.num_updates
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
            max_concurrent_trials=search.at_once or None,
            search_alg=None if search.at_once else BasicVariantGenerator(random_state=search.seed),
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


def collect(out: Path, config: Config, space: Space, until: str | None) -> dict[str, Any]:
    """What became of every trial, the best first: those that were evaluated, then by success on the way."""
    grid = tune.Tuner.restore(str(out.resolve() / STATE), SweepTrial).get_results()
    trials: list[dict[str, Any]] = []
    for each in grid:
        metrics, name = each.metrics or {}, str((each.metrics or {}).get("trial_id", Path(each.path).name))
        result = result_of(out / TRIALS / name)
        settings = {key: rounded(value) for key, value in (each.config or {}).get("settings", {}).items()}
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
    trials.sort(key=_rank)
    return {
        "name": config.name,
        "metric": metric_of(config, space),
        "shared_until": until,
        "num_updates": config.training.num_updates,
        "ranges": {key: each.model_dump(mode="json", exclude_none=True) for key, each in space.ranges.items()},
        "trials": trials,
    }


def _rank(trial: dict[str, Any]) -> tuple[bool, float, str]:
    value = trial["success"] if trial["final"] is None else trial["final"]["value"]
    return trial["final"] is None, -(value or 0.0), trial["name"]  # Tune's own order is not always the same
