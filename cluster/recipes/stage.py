"""Defines a stage and what its result is made from.

A stage names the settings and the stages that its result depends on. `made_from` hashes both, so a run resumed with
changed settings redoes the stages that depend on them and keeps the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cluster.recipes.context import RunContext
from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.episode_sources import PLAY
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import file_states, sha256_of, sha256_of_folder
from wmpo_ray.environments.augmentation import is_mirrored
from wmpo_ray.runs.round_folders import label_of

EVERYWHERE = ("seed", "environment", "cluster.threads_per_process")  # the result of every stage depends on these

# Settings that no result depends on: the run's name, placement, fault tolerance, monitoring, and limits after which it
# gives up. Also those that change a result by rounding only, such as the number of workers.
FREE = (
    "name",
    "environment.checkout",
    *(f"environment.{place}" for place in ("address", "ca", "certificate", "key", "patience_s")),
    "recipe.rounds",
    "placement",
    "faults",
    "checkpoint",
    "monitoring",
    "reward.placement",
    "reward.windows_per_batch",
    "cluster.imagination_actors",
    "cluster.reward_actors",
    "cluster.environment_actors",
    "cluster.environment_runtime_env",
    "cluster.learner_ranks",
    "cluster.stream_updates",
    "cluster.training_workers",
    "cluster.device",
    "cluster.spares",
    "cluster.spares_load_models",
    "cluster.address",
    "weights.transport",
    "weights.payload",  # all of them give the same bits
    "weights.per_step",
    "weights.timeout_s",
    "rollout.max_attempts",
    "rollout.speculation",
    "filter.fill_probability",
    "*.max_skipped_steps",
    "*.chunks_per_pass",
    "*.micro_batch_size",
    "policy.openvla.gradient_checkpointing",
    "world_model.max_decode_bytes",
    "evaluation.every_updates",
    "evaluation.num_starts_on_the_way",
)


# Settings that came after there were runs, with the value at which they change nothing: there they are no part of what a
# result is made from, so that earlier results hold.
LATER: Mapping[str, Any] = {
    "gate.max_false_positives": 1.0,
    "gate.min_safe_horizon": 0,
    "weights.per_step": False,
    "cluster.spares_load_models": False,
    "rollout.slots": 0,
    "rollout.trajectories_per_request": 0,
    "environment.task_names": (),
    "environment.task_weights": (),
    "rollout.start_order": "shuffled",
    "rollout.task_draw": "weight",
    "rollout.num_chunks": 0,
    "rollout.keyframes_per_episode": 0,
    "filter.dynamic_sampling": True,
    "reward.max_false_positive_rate": 0.0,
    "reward.verify.until": "horizon",
    "reward.label_noise.false_positives": 0.0,
    "reward.label_noise.false_negatives": 0.0,
    "world_model.alignment.conditioning_noise": None,
    "world_model.alignment.action_level": None,
    "world_model.denoiser.action_level": "frame",
    "filtered_bc.decisions": "every_step",
    "grpo.overlong_steps": 0,
    "grpo.loss_mean": "trajectory",
    **{f"{section}.groups_per_pass": 0 for section in ("grpo", "rloo", "reinforce_pp", "gspo")},
    "schedule.earlier": (),
    "policy.cloning.correction_weight": 1.0,
    "demos.source": "",
    "collect.source": "",
    "gate.source": "",
    **{
        f"{section}.source_{what}": ""
        for section in ("pretrain", "demos", "collect", "gate")
        for what in ("image_key", "instruction")
    },
    "demos.episodes_per_batch": 0,
    "collect.episodes_per_batch": 0,
    "evaluation.episodes_per_batch": 0,
    "pretrain.source": "",
    "pretrain.sources": (),
    "pretrain.shares": (),
    "pretrain.held_out": "",
    "augmentation.mirror": "auto",
    "augmentation.negated_actions": (),
    "augmentation.shift": "auto",
    "augmentation.pixel_weights": "auto",
}

# Once a setting; in records it stays, under its name of then, so that what was mirrored as it is now is kept.
MIRRORED = "world_model.alignment.vertical_flip"

SOURCES = (
    "pretrain.source",
    "pretrain.sources",
    "pretrain.held_out",
    "demos.source",
    "collect.source",
    "gate.source",
)  # files of episodes: what counts is their content


def no_check(config: Config, serial: bool) -> None:
    """The stage has no checks."""


def no_simulator(config: Config) -> str:
    """The stage needs none."""
    return ""


def suits_all(config: Config) -> None:
    """Any algorithm will do."""


@dataclass(frozen=True)
class Stage:
    """One step of a recipe. Patterns are relative to the folder of the round.

    needs: stages whose results it reads; it is redone after them. Stages that are not in the recipe are ignored.
    needs_of_tasks: those that it also needs in an environment with several tasks.
    follows: stages that must be done before it, whose results it does not read.
    builds_on: stages of the previous round whose results it reads.
    makes: the files that it makes for other stages.
    settings: sections or keys that its result depends on, besides `EVERYWHERE` and what it needs; `FREE` never counts.
    settings_if: (key, value, settings): other settings that it depends on where a key has a value, free ones included.
    extent: a setting for its length, such as the number of updates. If raised, the stage continues where it ended.
    state: patterns of the files that it resumes from after an interruption.
    keeps_state: whether these files are kept once the stage is done.
    check: raises UserError or ConfigError for problems that can be detected before the first stage begins.
    simulates: why it needs the environment's simulator with these settings; "": it needs none.
    suits: raises ConfigError for an algorithm or a place of rollouts that the stage is not for; always checked.
    format: version of its results; incremented when their meaning changes.
    """

    name: str
    run: Callable[[RunContext], dict[str, Any]]
    needs: tuple[str, ...] = ()
    needs_of_tasks: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    builds_on: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    settings_if: tuple[tuple[str, Any, tuple[str, ...]], ...] = ()
    extent: str = ""
    state: tuple[str, ...] = ()
    keeps_state: bool = False
    check: Callable[[Config, bool], None] = no_check
    simulates: Callable[[Config], str] = no_simulator
    suits: Callable[[Config], None] = suits_all
    format: int = 1


@dataclass(frozen=True)
class Step:
    """A stage in a round."""

    stage: Stage
    round: int
    needs: tuple[str, ...] = ()  # labels of steps

    @property
    def label(self) -> str:
        """Its name in the summary, on the command line and in messages."""
        return label_of(self.stage.name, self.round)


class MadeFrom(NamedTuple):
    """Everything that determines the result of a step."""

    key: str  # hash of everything below, without the extent
    extent_key: str  # the setting for its length, "" for most stages
    extent: int | None
    settings: dict[str, Any]
    needs: dict[str, str]  # label of a step -> hash of its result

    @property
    def result(self) -> str:
        """Identifier of the result, for steps that need it."""
        return self.key if self.extent is None else f"{self.key}:{self.extent}"


def made_from(step: Step, config: Config, results: Mapping[str, str]) -> MadeFrom:
    """What the result of a step would be made from. results: identifiers of earlier steps' results, by label."""
    stage = step.stage
    settings = settings_of(stage, config)
    (key,) = [key for key in settings if is_among(key, (stage.extent,))] if stage.extent else [""]
    extent = settings.pop(key) if key else None
    needs = {label: results[label] for label in step.needs}
    facts = {"stage": stage.name, "format": stage.format, "round": step.round, "settings": settings, "needs": needs}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return MadeFrom(hashlib.sha256(text.encode()).hexdigest()[:16], key, extent, settings, needs)


def settings_of(stage: Stage, config: Config) -> dict[str, Any]:
    """The settings that the result of a stage depends on, by their dotted keys, in JSON's types."""
    wanted, flat = (*EVERYWHERE, *stage.settings), flatten(config)
    chosen = {key: value for key, value in flat.items() if is_among(key, wanted) and not is_among(key, FREE)}
    chosen = {key: value for key, value in chosen.items() if key not in LATER or value != LATER[key]}
    for condition, value, keys in stage.settings_if:
        if flat[condition] == value:
            chosen |= {key: flat[key] for key in (condition, *keys)}
    if is_among(MIRRORED, wanted) and config.world_model.is_learned:
        chosen[MIRRORED] = is_mirrored(config)
    chosen |= {key: contents_of(value) for key, value in chosen.items() if key in SOURCES}
    return json.loads(json.dumps(chosen, default=str))  # as they are read back from a summary


def contents_of(value: str | tuple[str, ...]) -> str | list[str]:
    """`content_of` one source, or of each of several; play is made anew and has none."""
    if isinstance(value, str):
        return content_of(value)
    return [source if source == PLAY else content_of(source) for source in value]


def content_of(source: str) -> str:
    """The hash of a file or folder, or that it is missing."""
    path = Path(source).expanduser()
    if not path.exists():
        return "missing"
    return _content_of(path, file_states(path))


@lru_cache(maxsize=64)
def _content_of(path: Path, _states: tuple[tuple[str, int, int], ...]) -> str:
    """A plan asks for it stage by stage; what did not change is hashed once."""
    return f"sha256:{sha256_of(path) if path.is_file() else sha256_of_folder(path)}"


def is_among(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key, or a section that contains it, is in `names`; `*.name` is that name in any section."""
    return any(
        key.endswith(name[1:]) if name.startswith("*.") else key == name or key.startswith(f"{name}.") for name in names
    )
