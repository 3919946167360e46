"""How each start state of an evaluation ended: what success rates are computed from, and compared start by start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.environments import OF_SEVERAL_TASKS
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, sha256_of_folder
from wmpo_ray.core.section import shown
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.untrusted import read_bytes
from wmpo_ray.environments.task_of_start import tasks_of
from wmpo_ray.runs.round_folders import round_folder

FOLDER = "outcomes"  # in a run's folder
POLICIES = ("base", "final")
MAX_BYTES = 32 * 2**20  # 100,000 starts have about 4 MiB


class Outcomes(BaseModel):
    """One episode from each start state. All lists have the same order."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Literal[1] = 1
    environment: str  # hash of its settings: the same seed is another start state in another environment
    policy: str  # hash of its files
    temperature: float
    sampling_key: list[int | str]  # with the start and the chunk, the seed of every random number
    starts: list[int]  # their seeds
    success: list[bool]
    lengths: list[int]  # steps until the end
    failures: dict[str, list[bool]]  # of episodes that succeeded later, too
    tasks: list[str] = []  # of each start; empty in an environment with one task

    @model_validator(mode="after")
    def _lists_fit(self) -> Self:
        sizes = {len(self.starts), len(self.success), len(self.lengths), *map(len, self.failures.values())}
        if sizes != {len(self.starts)} or not self.starts:
            raise ValueError(f"lists of {sorted(sizes)} entries: every start needs one entry in each")
        if self.tasks and len(self.tasks) != len(self.starts):
            raise ValueError(f"tasks has {len(self.tasks)} entries for {len(self.starts)} starts")
        if len(set(self.starts)) != len(self.starts):
            raise ValueError("a start state occurs twice")
        return self

    @classmethod
    def of(cls, episodes: Episodes, config: Config, policy: Path, sampling_key: Sequence[int | str]) -> Self:
        """Outcomes of the episodes of the policy in a folder."""
        return cls(
            environment=environment_hash(config),
            policy=sha256_of_folder(policy),
            temperature=config.evaluation.temperature,
            sampling_key=list(sampling_key),
            starts=episodes.seeds.tolist(),
            success=episodes.success.tolist(),
            lengths=episodes.lengths.tolist(),
            failures={name: flags.tolist() for name, flags in episodes.failures.items()},
            tasks=start_tasks(config, episodes.seeds),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of all their starts, one after the other; everything else is that of the first part."""
        names = parts[0].failures
        return parts[0].model_copy(
            update={
                "starts": [start for part in parts for start in part.starts],
                "success": [success for part in parts for success in part.success],
                "lengths": [length for part in parts for length in part.lengths],
                "failures": {name: [flag for part in parts for flag in part.failures[name]] for name in names},
                "tasks": [task for part in parts for task in part.tasks],
            }
        )

    def of_tasks(self, names: Collection[str]) -> Self:
        """Of the starts of these tasks only. Raises ValueError where there are none."""
        rows = [i for i, task in enumerate(self.tasks) if task in names]
        if not rows:
            raise ValueError(f"no start of {', '.join(names)} was evaluated")
        lists = {name: [getattr(self, name)[i] for i in rows] for name in ("starts", "success", "lengths", "tasks")}
        failures = {name: [flags[i] for i in rows] for name, flags in self.failures.items()}
        return self.model_copy(update={**lists, "failures": failures})

    @property
    def task_rates(self) -> dict[str, dict[str, Any]]:
        """`rate` of each task, in the order in which they first occur; empty with one task."""
        return {name: self.of_tasks([name]).rate for name in dict.fromkeys(self.tasks)}

    @property
    def rate(self) -> dict[str, Any]:
        """Success rate with its 95% interval, as `RunFolder.set_result` takes it."""
        low, high = wilson_interval(sum(self.success), len(self.success))
        return {"value": float(np.mean(self.success)), "low": low, "high": high, "num": len(self.success)}

    @property
    def _self_correction(self) -> dict[str, Any]:
        if not self.failures:
            return {}
        success, failed = np.array(self.success), np.any([flags for flags in self.failures.values()], 0)
        recovered = float(success[failed].mean()) if failed.any() else None
        return {"failed_attempts": float(failed.mean()), "recovered": recovered}

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the stage: success, share of each failure without success, mean steps to success or None.

        `failed_attempts`: share of the episodes in which something went wrong; `recovered`: share of these that succeed
        all the same, None where there are none. Both only where the environment reports failures.
        """
        success, lengths = np.array(self.success), np.array(self.lengths)
        by_task = {"tasks": self.task_rates} if self.tasks else {}
        return (
            by_task
            | self._self_correction
            | {
                "success": float(success.mean()),
                "failures": {name: float((np.array(flags) & ~success).mean()) for name, flags in self.failures.items()},
                "success_length": float(lengths[success].mean()) if success.any() else None,
            }
        )


def start_tasks(config: Config, seeds: Sequence[int] | np.ndarray) -> list[str]:
    """The task of each start; empty in an environment with one task."""
    tasks = tasks_of(config.environment)
    return [] if tasks is None else tasks.of_seeds(seeds)


def environment_hash(config: Config) -> str:
    """16 hex digits that are equal for environments with equal settings, wherever they lie on the disk."""
    places = {f"environment.{name}" for name in config.environment.places}
    places |= set() if config.environment.task_names else {f"environment.{name}" for name in OF_SEVERAL_TASKS}
    settings = {
        key: value for key, value in flatten(config).items() if key.startswith("environment.") and key not in places
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outcomes_file(folder: Path, policy: str) -> Path:
    """`folder`: of a round. The base policy's is in round 1 only."""
    return folder / FOLDER / f"{policy}.json"


def run_outcomes_file(run: Path, policy: str) -> Path:
    """Of the newest round of a run that was evaluated, as the run's result is; of round 1 if none was."""
    found, round = outcomes_file(run, policy), 2
    while (path := outcomes_file(round_folder(run, round), policy)).is_file():
        found, round = path, round + 1
    return found


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    absent = set() if outcomes.tasks else {"tasks"}
    atomic_write(path, outcomes.model_dump_json(exclude=absent) + "\n")


def read_outcomes(path: Path) -> Outcomes:
    """Raises `UserError` for a file that is missing or damaged."""
    try:
        return Outcomes.model_validate_json(read_bytes(path, MAX_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is damaged: {key + ' = ' + shown(first['input']) + ': ' if key else ''}{message}"
        ) from None


def on_common_starts(all_outcomes: Sequence[Outcomes]) -> list[np.ndarray] | None:
    """Success [N] bool of each on the N start states that all of them have, in the order of the first.

    None where the environments differ, or there is no such start state.
    """
    first, *rest = all_outcomes
    by_start = [dict(zip(each.starts, each.success, strict=True)) for each in all_outcomes]
    common = [start for start in first.starts if all(start in found for found in by_start)]
    if not common or any(each.environment != first.environment for each in rest):
        return None
    return [np.array([success[start] for start in common], bool) for success in by_start]
