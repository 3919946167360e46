"""Population-based training (arXiv 1711.09846): who takes over from whom at a turn, and with which settings.

Every decision is a function of the seed of the search, the turn, and the successes there, so a sweep that was killed goes
on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.sweeps.space import Range, SearchSection, Space
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.untrusted import read_settings

RECORD = "population.json"
MAX_BYTES = 2**28  # of the record: ten thousand trials of thousands of turns write more than a person could
MOST_DRAWS = 100  # of settings that a run would refuse together

Settings = dict[str, Any]  # by dotted key
Allows = Callable[[Settings], bool]  # whether a run could be made with these settings


def any_settings(settings: Settings) -> bool:
    """Every combination can be run."""
    return True


class Takeover(BaseModel):
    """A trial goes on from the weights, optimizer and progress of another, with settings of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trial: str
    source: str
    settings: Settings


class Turn(BaseModel):
    """All trials have come to an update. A trial that failed on the way there has no success."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    update: int
    success: dict[str, float | None]
    takeovers: tuple[Takeover, ...] = ()


class Population(BaseModel):
    """The settings that each trial began with, and the turns so far."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    first: dict[str, Settings]
    turns: tuple[Turn, ...] = ()

    @classmethod
    def read(cls, folder: Path, space: Space, allows: Allows = any_settings) -> Population:
        """That of a sweep, or a new one. Raises UserError for a damaged record."""
        path = folder / RECORD
        return read_settings(path, cls, MAX_BYTES) if path.exists() else cls(first=first_settings(space, allows))

    def write(self, folder: Path) -> None:
        atomic_write(folder / RECORD, self.model_dump_json(indent=1) + "\n")

    @property
    def settings(self) -> dict[str, Settings]:
        """Of every trial, after the turns so far."""
        found = dict(self.first)
        for turn in self.turns:
            found |= {each.trial: each.settings for each in turn.takeovers}
        return found

    def with_turn(
        self, space: Space, update: int, success: Mapping[str, float | None], allows: Allows = any_settings
    ) -> Population:
        """After another turn, at which poor trials take over from good ones."""
        takeovers = tuple(self._takeovers(space, update, success, allows))
        turn = Turn(update=update, success=dict(success), takeovers=takeovers)
        return self.model_copy(update={"turns": (*self.turns, turn)})

    def _takeovers(
        self, space: Space, update: int, success: Mapping[str, float | None], allows: Allows
    ) -> list[Takeover]:
        """Of the worst `quantile` and of those that failed, each from one of the best `quantile` that is better."""
        known = {name: value for name, value in success.items() if value is not None}
        ranked = sorted(known, key=lambda name: (known[name], name))
        count = min(math.ceil(len(success) * space.search.quantile), max(1, len(ranked) // 2))
        best, poor = ranked[-count:], ranked[:count]
        found = []
        for name in [*sorted(success.keys() - known.keys()), *poor]:
            random = np.random.default_rng(seed_for(space.search.seed, "population", update, name))
            better = [other for other in best if known[other] > known.get(name, -math.inf)]
            if not better:
                continue
            source = better[int(random.integers(len(better)))]
            settings = explored(self.settings[source], space, random, allows)
            found.append(Takeover(trial=name, source=source, settings=settings))
        return found


def first_settings(space: Space, allows: Allows = any_settings) -> dict[str, Settings]:
    """Drawn for each trial. Raises ConfigError where a run would refuse all that is drawn."""
    width = len(str(space.search.trials - 1))
    found = {}
    for i in range(space.search.trials):
        random = np.random.default_rng(seed_for(space.search.seed, "population", "first", i))
        draws = ({key: draw(each, random) for key, each in space.ranges.items()} for _ in range(MOST_DRAWS))
        settings = next(filter(allows, draws), None)
        if settings is None:
            raise ConfigError(
                f"[space]: {MOST_DRAWS} draws of {', '.join(space.ranges)} together were settings that a run refuses; "
                "narrow their ranges"
            )
        found[f"{i:0{width}d}"] = settings
    return found


def draw(each: Range, random: np.random.Generator) -> Any:
    """A value of a range."""
    if each.choice is not None:
        return each.choice[int(random.integers(len(each.choice)))]
    if each.integers is not None:
        return int(random.integers(each.integers[0], each.integers[1], endpoint=True))
    low, high = each.examples
    if each.loguniform is not None:
        return each.rounded(math.exp(random.uniform(math.log(low), math.log(high))))
    return each.rounded(float(random.uniform(low, high)))


def explored(settings: Settings, space: Space, random: np.random.Generator, allows: Allows = any_settings) -> Settings:
    """Each setting drawn again with the probability `resample`, or else changed a little, within its range.

    Where a run would refuse all combinations that are tried, the settings stay what they are.
    """
    for _ in range(MOST_DRAWS):
        found = {
            key: draw(each, random)
            if random.random() < space.search.resample
            else perturbed(settings[key], each, space.search, random)
            for key, each in space.ranges.items()
        }
        if allows(found):
            return found
    return settings


def perturbed(value: Any, each: Range, search: SearchSection, random: np.random.Generator) -> Any:
    """A number times one of the `factors`, or a neighbour among the choices."""
    if each.choice is not None:
        place = each.choice.index(value) + (1 if random.random() < 0.5 else -1)
        return each.choice[min(max(place, 0), len(each.choice) - 1)]
    low, high = each.examples
    factor = search.factors[int(random.integers(len(search.factors)))]
    if each.integers is None:
        return each.rounded(value * factor)
    changed = round(value * factor)
    if changed == value:  # 1.2 times 2 is 2: a small number moves too
        changed += (factor > 1) - (factor < 1)
    return int(min(max(changed, low), high))
