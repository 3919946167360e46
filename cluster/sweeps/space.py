"""The file of a sweep: which settings are searched in which ranges, and how.

[space.grpo]
learning_rate = { loguniform = [2e-5, 4e-4] }
clip_high = { uniform = [0.2, 0.4] }

[search]
trials = 8
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from cluster.recipes.recipe_table import steps_of
from cluster.recipes.stage import made_from
from wmpo_ray.config.loading import overridden
from wmpo_ray.config.run import Config
from wmpo_ray.config.stretches import override as setting
from wmpo_ray.core.errors import ConfigError, UserError, first_line
from wmpo_ray.core.section import Count, Positive, Section, Share, shown
from wmpo_ray.core.untrusted import read_bytes, read_json

Table = TypeVar("Table", bound=Section)
FILE = "space.json"  # of a sweep's folder
MAX_BYTES = 2**20
RANGES = ("uniform", "loguniform", "integers", "choice")
Pair = tuple[float, float]


class Range(Section):
    """One of them: between two numbers, evenly or in their logarithms, whole numbers with both ends, or given values."""

    uniform: Pair | None = None
    loguniform: Pair | None = None
    integers: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in RANGES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a range is one of {', '.join(RANGES)}")
        values = getattr(self, given[0])
        if not values:
            raise ValueError("choice = []: there is nothing to choose from")
        if self.choice is None and not values[0] < values[1]:
            raise ValueError(f"{given[0]} = {shown(values)}: the first number must be below the second")
        if self.loguniform is not None and not values[0] > 0:
            raise ValueError(f"loguniform = {shown(values)}: both ends must be above 0")
        return self

    @property
    def examples(self) -> tuple[Any, ...]:
        """Its ends, or all its values."""
        return next(values for name in RANGES if (values := getattr(self, name)) is not None)

    def rounded(self, value: Any) -> Any:
        """A drawn number in four digits, enough to search by and to read: four of what differs within the range."""
        if self.choice is not None or self.integers is not None:
            return value
        low, high = self.examples
        common = max(0, int(math.log10(max(abs(low), abs(high)) / (high - low))))
        return min(max(float(f"{value:.{4 + common}g}"), low), high)


OF_SCHEDULER = {"asha": ("min_updates", "reduction"), "pbt": ("interval", "quantile", "resample", "factors")}


class SearchSection(Section):
    scheduler: Literal["asha", "pbt"] = "asha"  # the worse end early, or take over from the better
    trials: Annotated[int, Field(ge=1, le=10**4)] = 8
    metric: Literal["auto", "real", "imagined"] = "auto"  # real success where the run measures it on the way
    min_updates: Count = 3  # that every trial gets before it may be stopped
    reduction: Annotated[int, Field(ge=2, le=100)] = 3  # of the trials at a rung, one in so many goes on
    interval: Count = 3  # updates between two turns, at which poor trials take over from good ones
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25  # of the trials: so many are poor, and so many good
    resample: Share = 0.25  # probability that a setting is drawn again; otherwise it is changed a little
    factors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.8, 1.2)  # one of which a number is multiplied by
    at_once: Annotated[int, Field(ge=0, le=10**4)] = 0  # trials; 0: as many as there is room for
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in sorted(self._without_effect & self.model_fields_set):
            raise ValueError(
                f"search.{key} = {shown(getattr(self, key))} has no effect with search.scheduler = {shown(self.scheduler)}"
            )
        return self

    @property
    def _without_effect(self) -> set[str]:
        """Those of the other schedulers."""
        return {key for name, keys in OF_SCHEDULER.items() if name != self.scheduler for key in keys}

    def as_record(self) -> dict[str, Any]:
        """What the sweep depends on; with ASHA, which was there first, as it was written then."""
        without = self._without_effect | ({"scheduler"} if self.scheduler == "asha" else set())
        return self.model_dump(mode="json", exclude=without)


class Space(NamedTuple):
    ranges: dict[str, Range]  # by dotted key of the setting
    search: SearchSection

    def as_json(self) -> str:
        ranges = {key: each.model_dump(mode="json", exclude_none=True) for key, each in self.ranges.items()}
        return json.dumps({"space": ranges, "search": self.search.as_record()}, indent=1) + "\n"


def read_space(path: Path) -> Space:
    """Raises ConfigError for a file that cannot be read, or is no space."""
    try:
        data = tomllib.loads(read_bytes(path, MAX_BYTES).decode())
    except ValueError as error:  # also of other text, and of a number of too many digits
        raise ConfigError(f"--space {path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"--space {path} is nested too deeply") from None
    unknown = data.keys() - {"space", "search"}
    if unknown or not isinstance(data.get("space"), dict):
        raise ConfigError(
            f"--space {path}: expected the tables [space] and [search], found {', '.join(data) or 'nothing'}"
        )
    try:
        ranges: dict[str, Range] = {}
        for key, value in _ranges(data["space"]):
            if key in ranges or key != "".join(key.split()):
                raise ValueError(f"{shown(key)}: each setting is named once, without blanks")
            ranges[key] = _checked(Range, key, value)
        search = _checked(SearchSection, "search", data.get("search", {}))
    except ValueError as error:
        raise ConfigError(f"--space {path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"--space {path} is nested too deeply") from None
    if not ranges:
        raise ConfigError(f"--space {path}: no setting is searched; name one in [space]")
    return Space(ranges, search)


def _checked(table: type[Table], key: str, value: Any) -> Table:
    """Raises ValueError with every mistake, each named by its dotted key."""
    try:
        return table.model_validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(_mistake(table, key, each) for each in error.errors())) from error


def _mistake(table: type[Section], key: str, details: Any) -> str:
    place = ".".join([key, *map(str, details["loc"])])
    if details["type"] == "value_error":
        text = str(details["ctx"]["error"])
        return text if text.startswith(f"{key}.") else f"{place}: {text}"
    if details["type"] == "extra_forbidden":
        return f"unknown key {place}; known are {', '.join(table.model_fields)}"
    return f"{place} = {shown(details['input'])}: {details['msg'].replace('Input should', 'it must')}"


def _ranges(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if not isinstance(value, dict):
            raise ValueError(f"{key} = {shown(value)}: expected a range, such as {{ uniform = [0.2, 0.4] }}")  # noqa: TRY004
        if value.keys() & set(RANGES):
            yield key, value
        else:
            yield from _ranges(value, f"{key}.")


def last_shared(config: Config, space: Space) -> str | None:
    """The last stage before the first that depends on a searched setting; None where even the first does.

    What a stage's result is made from decides, as for a fork. Raises ConfigError for a value that a run would refuse, and
    for a setting that changes no result.
    """
    plain, dependent = _results(config), set[str]()
    for key, each in space.ranges.items():
        changed: set[str] = set()
        for value in each.examples:
            other = _results(overridden(config, [setting(key, value)]))
            changed |= {label for label in plain if other.get(label) != plain[label]}
        if not changed:
            raise ConfigError(
                f"{key}: no stage's result depends on it, or no value differs from the run's own; leave it out of [space]"
            )
        dependent |= changed
    shared = []
    for label in plain:
        if label in dependent:
            break
        shared.append(label)
    return shared[-1] if shared else None


def _results(config: Config) -> dict[str, str]:
    """What the result of every stage would be made from, by label."""
    results: dict[str, str] = {}
    for step in steps_of(config):
        results[step.label] = made_from(step, config, results).result
    return results


def ranges_of(out: Path) -> dict[str, Range]:
    """Those of the sweep in a folder, by setting. Raises UserError where its file is damaged."""
    found = read_json(out / FILE)
    try:
        return {key: Range.model_validate_json(json.dumps(each)) for key, each in found["space"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{out / FILE} is damaged: {first_line(error)}; begin the sweep in another folder") from error
