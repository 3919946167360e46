"""The stretches of updates between which the settings of a training change.

The schedule is a part of the configuration, so what a run with changes on the way ends with is a function of its
settings, as of any other: the same schedule from the beginning gives the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.loading import overridden
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError

EARLIER = "schedule.earlier"
# Besides the settings of the algorithm: how groups are sampled and filtered.
OF_GROUPS = (
    "filter.dynamic_sampling",
    "filter.min_mean",
    "filter.max_mean",
    "rollout.temperature",
    "rollout.group_size",
    "rollout.groups_per_update",
)
# Of the algorithm: its length, what the state of the optimizer is shaped by, and what changes no result.
FIXED = ("num_updates", "trained_parameters", "chunks_per_pass", "max_skipped_steps")


def override(key: str, value: Any) -> str:
    """As the command line takes it after --set."""
    return f"{key}={json.dumps(value)}"


def is_changeable(key: str, config: Config) -> bool:
    """Whether a setting may change between two updates."""
    section, _, name = key.rpartition(".")
    return key in OF_GROUPS or (section == config.algorithm.section and name not in FIXED)


def refuse_fixed(keys: Iterable[str], config: Config, where: str) -> None:
    """Raises ConfigError for settings that cannot change between two updates; `where` says who asks for it."""
    fixed = [key for key in keys if not is_changeable(key, config)]
    if fixed:
        raise ConfigError(
            f"{where}: {', '.join(fixed)} cannot change between two updates; what can are the settings of "
            f"[{config.algorithm.section}] except {', '.join(FIXED)}, and {', '.join(OF_GROUPS)}"
        )


def stretches(config: Config) -> list[Config]:
    """The configuration of each stretch in order; the last is `config` itself. `training.num_updates` ends a stretch.

    Raises ConfigError for a schedule that cannot be.
    """
    earlier, length = config.schedule.earlier, f"{config.algorithm.section}.num_updates"
    if not earlier:
        return [config]
    if config.training.source != "online":
        raise ConfigError(
            f"{EARLIER}: [{config.algorithm.section}] learns from recorded episodes, all with the same settings; remove it"
        )
    found = []
    for i, settings in enumerate(earlier):
        keys = [each.partition("=")[0].strip() for each in settings]
        refuse_fixed([key for key in keys if key != length], config, EARLIER)
        found.append(overridden(config, [*settings, override(EARLIER, earlier[:i])]))
    ends = [each.training.num_updates for each in [*found, config]]
    if sorted(set(ends)) != ends:
        raise ConfigError(
            f"{EARLIER}: its stretches end with the updates {ends[:-1]} and the training with {ends[-1]}; each must be "
            f"above the one before: set {length} in each entry"
        )
    return [*found, config]


def changed_on_the_way(old: Config, new: Config) -> Config:
    """`new` for the updates after those of `old`, which has its own schedule; where nothing changes, `new` as it is.

    Raises ConfigError for settings that cannot change, and where no update comes after those of `old`.
    """
    parts = stretches(old)
    flat, length = flatten(new), f"{new.algorithm.section}.num_updates"
    before = [flatten(part) for part in parts]
    varied = [
        key for key in flat if is_changeable(key, new) and any(part.get(key, flat[key]) != flat[key] for part in before)
    ]
    last = tuple(flat[key] for key in varied)
    ends: list[tuple[int, tuple[Any, ...]]] = []
    for part, config in zip(before, parts, strict=True):
        values = tuple(part[key] for key in varied)
        if ends and ends[-1][1] == values:
            ends.pop()
        ends.append((config.training.num_updates, values))
    if ends[-1][1] == last:
        ends.pop()
    earlier = [
        [override(length, end), *(override(key, value) for key, value in zip(varied, values, strict=True))]
        for end, values in ends
    ]
    changed = overridden(new, [override(EARLIER, earlier)])
    stretches(changed)
    return changed


def first_update(config: Config) -> int:
    """Updates before the stretch that the sections of `config` hold for."""
    return stretches(config)[-2].training.num_updates if config.schedule.earlier else 0
