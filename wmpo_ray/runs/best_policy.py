"""The best policy on the way: its weights are kept beside the last ones, in `checkpoints/best`.

Success is measured while the learner goes on, so the learner saves every version that will be measured as a candidate.
Once its success is known, a candidate takes the place of the best one or is deleted. `best.json` names the best one and
is replaced in one step, so after any interruption it names weights that are there. The choice is a function of what was
measured and not of its order: the highest success, and of equal ones the earliest update.

Where `evaluation.every_updates` is 0, nothing real is asked: then the success of the rollouts counts that the next
update is trained on, the verified one where another world model checks it.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import atomic_directory, atomic_write, remove_directory, remove_leftovers
from wmpo_ray.core.untrusted import read_settings

FOLDER, RECORD = "best", "best.json"
REAL = "real/success_rate"
_CANDIDATE = re.compile(r"update-(\d{6,})")

_Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class BestRecord(BaseModel):
    """The best version so far: updates that it has had, and its success with the 95% interval where one is known."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    update: Annotated[int, Field(ge=0)]
    metric: str
    value: _Rate
    low: _Rate | None = None
    high: _Rate | None = None


def metric_of(config: Config) -> str:
    """The success that the best version is chosen by."""
    if config.evaluation.every_updates:
        return REAL
    if config.rollout.world == "environment":
        return "rollout/success_rate"
    return "imagined/verified_success_rate" if config.reward.verify.enabled else "imagined/success_rate"


def is_candidate(config: Config, update: int) -> bool:
    """Whether the version after so many updates is measured, in this run or once it has more updates."""
    if config.training.source != "online":
        return False
    if every := config.evaluation.every_updates:
        return update % every == 0
    return config.filter.max_staleness < config.training.num_updates


def candidate_path(checkpoints: Path, update: int) -> Path:
    return checkpoints / FOLDER / f"update-{update:06d}"


def check_best(config: Config) -> None:
    """Raises ConfigError where the best policy is asked for and no version would be measured."""
    if config.evaluation.final_policy != "best":
        return
    section, settings, every = config.algorithm.section, config.training, config.evaluation.every_updates
    problem = ""
    if settings.source != "online":
        problem = f"{section} measures no success on the way"
    elif every > settings.num_updates:
        problem = f"evaluation.every_updates={every} is more than {section}.num_updates={settings.num_updates}"
    elif not every and settings.num_updates - 1 - config.filter.max_staleness < 1:
        problem = (
            f"with evaluation.every_updates=0, filter.max_staleness={config.filter.max_staleness} and "
            f"{section}.num_updates={settings.num_updates} no version is measured"
        )
    if problem:
        raise ConfigError(f'evaluation.final_policy = "best": {problem}; set evaluation.final_policy to "last"')


class BestPolicy:
    """Keeps the best of the measured candidates in the folder of checkpoints. One process at a time.

    The first candidate, of update 0, is the policy in `first`, which the training begins with and which stays there.
    Raises UserError for a damaged record.
    """

    def __init__(self, config: Config, checkpoints: Path, first: Path):
        self.config, self.checkpoints, self.first = config, checkpoints, first
        self.folder, self.metric = checkpoints / FOLDER, metric_of(config)
        self.record = self._read()
        if self.folder.is_dir():
            remove_leftovers(self.folder)

    @property
    def is_real(self) -> bool:
        return self.metric == REAL

    @property
    def path(self) -> Path | None:
        """The weights of the best version; None while there is none."""
        return None if self.record is None else self.candidate(self.record.update)

    def candidate(self, update: int) -> Path:
        return candidate_path(self.checkpoints, update) if update else self.first

    def measured(self, update: int, metrics: Mapping[str, float]) -> None:
        """The success of a version is known: keep it if it is the best so far, and else delete it."""
        value, best = metrics.get(self.metric), self.record
        if value is None or not math.isfinite(value) or not self.candidate(update).is_dir():
            return
        if best is not None and best.metric == self.metric:
            if best.update == update:
                return
            if (best.value, -best.update) > (value, -update):
                self.discard(update)
                return
        low, high = (
            (metrics.get("real/success_low"), metrics.get("real/success_high")) if self.is_real else (None, None)
        )
        self.record = BestRecord(update=update, metric=self.metric, value=value, low=low, high=high)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / RECORD, self.record.model_dump_json(indent=1) + "\n")
        if best is not None and best.update != update:
            self.discard(best.update)

    def discard(self, update: int) -> None:
        """Delete a candidate, but never the policy that the training began with."""
        path = self.candidate(update)
        if update and path.is_dir():
            remove_directory(path)

    def unmeasured(self) -> list[int]:
        """Updates of the candidates whose success is not known."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        found = [int(match[1]) for name in names if (match := _CANDIDATE.fullmatch(name))]
        return sorted(update for update in found if self.record is None or update != self.record.update)

    def copy_to(self, target: Path) -> bool:
        """Put the best weights in place of `target`; False where there are none."""
        if self.path is None or not self.path.is_dir():
            return False
        with atomic_directory(target) as folder:
            shutil.copytree(self.path, folder, dirs_exist_ok=True)
        return True

    def _read(self) -> BestRecord | None:
        path = self.folder / RECORD
        if not path.exists():
            return None
        try:
            return read_settings(path, BestRecord)
        except UserError as error:
            raise UserError(f"{error}; delete {path} to keep the best policy from here on") from error
