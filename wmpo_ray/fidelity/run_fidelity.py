"""The fidelity report of a run folder: its world model on the held-out episodes of a round."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, json_clean
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.section import shown
from wmpo_ray.data.store import load_episodes
from wmpo_ray.fidelity.fidelity_file import describe
from wmpo_ray.fidelity.learned_distance import LearnedDistance
from wmpo_ray.fidelity.measurement import Instruments, measure
from wmpo_ray.fidelity.metrics import FIDELITY
from wmpo_ray.registry import load_reward_model, load_world_model, make_environment
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.round_folders import label_of, round_folder

SOURCES_OF = ("collect", "world-model", "reward-model")  # stages that the figures depend on
Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]  # (what is done, how often) -> advance(done)


def measured_round(run: RunFolder, round: int | None = None) -> int:
    """The round to measure: the newest whose world model is there, or the one that is asked for.

    Raises UserError where there is none, and says what it lacks.
    """
    rounds = range(run.config.recipe.rounds, 0, -1) if round is None else (round,)
    for number in rounds:
        if all(run.is_done(label_of(stage, number)) for stage in SOURCES_OF[:2]):
            return number
    recipe = run.summary.get("recipe", {})
    if recipe.get("stages") and "world-model" not in recipe["stages"]:
        raise UserError(f'{run.path} imagines nothing: its recipe "{recipe.get("kind")}" has no world model')
    where = "" if round is None else f" in round {round}"
    raise UserError(
        f"{run.path} has no world model yet{where}: its stages collect and world-model must be done; go on with "
        "`wmpo run ... --resume`"
    )


def fidelity_of_run(
    run: RunFolder, config: Config, round: int, bar: Bar, num_episodes: int | None = None, lpips: Path | None = None
) -> dict[str, Any]:
    """The content of `fidelity.json`, see `describe`. config: that of the round. lpips: file of weights, or none.

    `missing` says in a sentence why a figure is not there. Raises UserError for weights that are none.
    """
    root = round_folder(run.path, round)
    episodes = load_episodes(root / "trajectories" / "held-out.parquet")
    if num_episodes is not None:
        episodes = episodes.rows(slice(num_episodes))
    device = process_device(config.cluster.device)
    distance = None if lpips is None else LearnedDistance.load(lpips).to(device)
    environment, missing = _environment(config)
    judge = None
    if run.is_done(label_of("reward-model", round)):
        judge = VideoJudge(load_reward_model(config, str(root / "models" / "reward-model")), config.reward.min_steps)
    else:
        missing["labels"] = "The stage reward-model is not done, so nothing judges the videos."
    if distance is None:
        missing["lpips"] = "No LPIPS: name a file of its weights with --lpips or $WMPO_LPIPS; none is downloaded."
    world = load_world_model(config, str(root / "models" / "world-model"))
    with bar("replaying and measuring", len(episodes)) as advance:
        measured = measure(world, episodes, config.seed, Instruments(environment, judge, distance, device), advance)
    names = tuple(getattr(environment, "failures", None) or episodes.failures)
    unit = getattr(environment, "position_unit", "")
    content = describe(measured, episodes, unit, names, config.gate.min_label_agreement, config.seed)
    facts = {"seed": config.seed, "round": round, "made_from": _made_from(run, round), "missing": missing}
    return json_clean({**content, **facts})


def write_fidelity(run: RunFolder, round: int, content: dict[str, Any]) -> Path:
    """Write `fidelity.json` of a round and return its path; on any failure the old one stays."""
    path = round_folder(run.path, round) / FIDELITY
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def _environment(config: Config) -> tuple[Any, dict[str, str]]:
    """(the environment, or None, and why what it would measure is missing)."""
    kind = shown(config.environment.kind)
    try:
        environment: Any = make_environment(config.environment)
    except UserError as error:
        return None, {"positions": f"No positions and no failure modes: {error}"}
    missing = {}
    if "locate" not in environment.abilities:
        missing["positions"] = f'No positions: environment.kind={kind} does not name the ability "locate".'
    if "failures" not in environment.abilities:
        missing["failures"] = f'Imagined failures have no modes: {kind} does not name the ability "failures".'
    return environment, missing


def _made_from(run: RunFolder, round: int) -> dict[str, str]:
    """By stage, the key of what its result was made from: other ones mean another world model or other episodes."""
    records = {stage: run.record(label_of(stage, round)) or {} for stage in SOURCES_OF}
    return {stage: (record.get("made_from") or {}).get("key", "") for stage, record in records.items()}
