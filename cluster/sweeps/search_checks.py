"""What a sweep is refused for before anything of it runs, and what its trials are compared by."""

from __future__ import annotations

from pathlib import Path

from cluster.recipes.recipe_table import steps_of
from cluster.sweeps.space import FILE, Space, setting
from cluster.sweeps.trial import BASE
from wmpo_ray.config.loading import load_config, overridden
from wmpo_ray.config.run import Config
from wmpo_ray.config.stretches import refuse_fixed
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.registry import check_simulator
from wmpo_ray.runs.folder import LOCK

REAL = "real/success_rate"
MAX_NAME = 255  # bytes, of a folder


def check_search(config: Config, space: Space) -> None:
    """Raises ConfigError for a way of searching that does not suit the run."""
    metric_of(config, space)
    if space.search.scheduler == "pbt":
        check_population(config, space)
        return
    least, length = space.search.min_updates, longest(config, space)
    if "min_updates" in space.search.model_fields_set and least > length:
        raise ConfigError(
            f"search.min_updates = {least}: with {config.algorithm.section}.num_updates = {length} no trial would ever be "
            "stopped early; lower it, or raise the updates"
        )


def longest(config: Config, space: Space) -> int:
    """Updates of the longest run that the ranges allow."""
    runs = [overridden(config, [setting(key, value)]) for key, each in space.ranges.items() for value in each.examples]
    return max(run.training.num_updates for run in [config, *runs])


def check_population(config: Config, space: Space) -> None:
    """Raises ConfigError for what a population cannot be trained with."""
    refuse_fixed(space.ranges, config, 'search.scheduler = "pbt"')
    every, interval = config.evaluation.every_updates, space.search.interval
    if config.training.source != "online" or config.recipe.rounds > 1:
        raise ConfigError(
            'search.scheduler = "pbt" needs one stage optimize that learns from rollouts, so one round and no algorithm of '
            'recorded episodes; choose "asha"'
        )
    if metric_of(config, space) == REAL and interval % every:
        raise ConfigError(
            f"search.interval = {interval}: real success is measured every {every} updates, and trials are compared at a "
            "turn; make it a multiple, or set evaluation.every_updates"
        )
    length = f"{config.algorithm.section}.num_updates"
    if interval >= config.training.num_updates:
        raise ConfigError(
            f"search.interval = {interval}: with {length} = {config.training.num_updates} no trial would ever take over from "
            f"another; lower search.interval, or raise {length}"
        )
    try:
        steps_of(overridden(config, [setting(length, interval)]))
    except ConfigError as error:
        raise ConfigError(f"search.interval = {interval}: trials first train for as many updates: {error}") from error


def check_folder(out: Path, config: Config, space: Space, resume: bool) -> None:
    """Raises UserError where the folder holds something else, or a sweep that is not to be gone on with."""
    if len(out.name.encode()) > MAX_NAME:
        raise UserError(f"--out {out.name[:20]}...: a name has at most {MAX_NAME} bytes; choose a shorter one")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    if not out.exists() or all(path.name.startswith(LOCK) for path in out.iterdir()):
        return
    if not (out / FILE).is_file():
        raise UserError(f"--out {out} holds something else than a sweep; choose another folder")
    # The settings are read, not compared as text: a version of the program that has more of them goes on with the sweep.
    is_same = (out / FILE).read_bytes() == space.as_json().encode() and load_config(str(out / BASE)) == config
    if not is_same:
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
