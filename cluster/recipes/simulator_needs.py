"""Which stages need the environment's simulator, and why: a run whose episodes are recorded ones goes on up to them."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.recipes.stage import Step
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.registry import check_simulator


def check_simulator_of(config: Config, steps: Sequence[Step]) -> None:
    """Raises ConfigError where steps need a simulator that cannot be used: what is wrong with it, and who needs it why."""
    needs = {step.label: why for step in steps if (why := step.stage.simulates(config))}
    if not needs:
        return
    try:
        check_simulator(config)
    except ConfigError as error:
        labels = [step.label for step in steps]
        before = labels[: labels.index(next(iter(needs)))]
        until = f"; --until {before[-1]} runs what comes before" if before else ""
        who = ", ".join(f"{label} ({why})" for label, why in needs.items())
        raise ConfigError(f"{error}; the simulator is needed by {who}{until}") from None


def imagines(config: Config) -> str:
    """A world that is the simulator needs it wherever something is imagined."""
    return "" if config.world_model.is_learned else f"world_model.kind = {shown(config.world_model.kind)}"


def demonstrates(config: Config) -> str:
    return "" if config.demos.source else "demos.source is empty"


def records(config: Config) -> str:
    empty = [f"{name}.source" for name in ("collect", "gate") if not getattr(config, name).source]
    return f"{' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty" if empty else ""


def plays(config: Config) -> str:
    return "" if config.pretrain.source else "pretrain.source is empty"


def executes_other_actions(config: Config) -> str:
    num = config.gate.num_counterfactuals
    return imagines(config) or (f"gate.num_counterfactuals = {num}" if num else "")


def measures_on_the_way(config: Config) -> str:
    if config.rollout.world == "environment":
        return 'rollout.world = "environment"'
    every = config.evaluation.every_updates
    return imagines(config) or (f"evaluation.every_updates = {every}" if every else "")


def always(config: Config) -> str:
    return "its episodes are real ones"
