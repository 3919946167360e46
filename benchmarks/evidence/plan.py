"""What is compared: methods and variants, each a few settings of the demo, over real budgets and seeds.

A cell is one of them at one budget and seed. Cells share the stages that do not differ: `world` bases have the
demonstrations, the base policy, P real episodes, the aligned world model and the reward model; `verified` bases have the
second world model as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BUDGET, SEEDS = 128, (0, 1, 2)
BUDGETS = (32, 64, 128, 512)
UPDATES = 30
# Real success at eleven versions of the policy, on enough starts to be compared with imagined success.
WATCHED = ("evaluation.every_updates=3", "evaluation.num_starts_on_the_way=256")
VERIFY = "reward.verify.enabled"


@dataclass(frozen=True)
class Method:
    """`title`: as tables say it; `settings`: what makes it differ from the preset."""

    title: str
    settings: tuple[str, ...]
    base: Literal["world", "verified"] = "world"
    min_budget: int = 0  # real episodes that one update takes


def _grpo(*settings: str) -> tuple[str, ...]:
    return (f"grpo.num_updates={UPDATES}", *settings)


def _online(groups: int, learning_rate: float) -> tuple[str, ...]:
    """GRPO on P real episodes in all, those of rejected groups included."""
    return (
        "recipe.kind=grpo-online",
        f"rollout.groups_per_update={groups}",
        "rollout.groups_per_request=1",
        f"grpo.minibatch_trajectories={8 * groups}",
        f"grpo.learning_rate={learning_rate}",
        "grpo.num_updates=64",
        "rollout.max_trajectories={budget}",
    )


def _offline(recipe: str, section: str, updates: int, learning_rate: float) -> tuple[str, ...]:
    return (
        f"recipe.kind={recipe}",
        f"{section}.num_updates={updates}",
        f"{section}.learning_rate={learning_rate}",
        f"{section}.episodes_per_update={{half}}",
        f"{section}.minibatch_trajectories={{half}}",
    )


METHODS = {
    "wmpo": Method("WMPO", _grpo()),
    # A batch of 8 trajectories and one of 64, the learning rate scaled with the square root of it.
    "grpo-online-8": Method("online GRPO, batch 8", _online(1, 3.5e-5)),
    "grpo-online-64": Method("online GRPO, batch 64", _online(8, 1e-4), min_budget=64),
    "dpo": Method("DPO, rate 1e-5", _offline("dpo", "dpo", 30, 1e-5)),
    "dpo-fast": Method("DPO, rate 5e-5", _offline("dpo", "dpo", 15, 5e-5)),
    "bc-real": Method("cloning of real successes, 30 updates", _offline("bc-real", "filtered_bc", 30, 1e-4)),
    "bc-real-long": Method("cloning of real successes, 120 updates", _offline("bc-real", "filtered_bc", 120, 1e-4)),
    "bc-imagined": Method(
        "cloning of imagined successes", ("recipe.kind=bc-imagined", f"rollout_bc.num_updates={UPDATES}")
    ),
}
VARIANTS = {
    "refute": Method("a disputed success is a failure", _grpo("reward.verify.disputed=failure"), "verified"),
    "abstain": Method("a disputed success is unknown", _grpo("reward.verify.disputed=unknown"), "verified"),
    "perfect-world": Method("the simulator as world model", _grpo("world_model.kind=simulator")),
    "token-ratio": Method("a ratio for each token", _grpo("grpo.ratio=token")),
    "symmetric-clip": Method("symmetric clipping, 0.2", _grpo("grpo.clip_high=0.2")),
    "staleness-1": Method("rollouts one update old", _grpo("filter.max_staleness=1")),
    "two-steps": Method("two sampling steps", _grpo("world_model.sampler.num_steps=2")),
    "five-steps": Method("five sampling steps", _grpo("world_model.sampler.num_steps=5")),
    "no-alignment": Method("no policy behaviour alignment", _grpo("world_model.alignment.steps=0")),
    "two-epochs": Method("two epochs an update", _grpo("grpo.num_epochs=2")),
}
ALL = METHODS | VARIANTS


@dataclass(frozen=True)
class Cell:
    method: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-p{self.budget}-s{self.seed}"

    @property
    def base(self) -> str:
        return base_name(ALL[self.method].base, self.budget, self.seed)

    @property
    def settings(self) -> tuple[str, ...]:
        values = {"budget": self.budget, "half": self.budget // 2}
        return (
            *base_settings(ALL[self.method].base, self.budget, self.seed),
            *WATCHED,
            *(setting.format(**values) for setting in ALL[self.method].settings),
        )


def base_name(kind: str, budget: int, seed: int) -> str:
    return f"{kind}-p{budget}-s{seed}"


def base_settings(kind: str, budget: int, seed: int) -> tuple[str, ...]:
    verified = "true" if kind == "verified" else "false"
    return (f"seed={seed}", f"collect.num_trajectories={budget}", f"{VERIFY}={verified}")


def cells(
    methods: Iterator[str] | None = None, budgets: tuple[int, ...] = (), seeds: tuple[int, ...] = ()
) -> list[Cell]:
    """Cells in their order of importance: all methods at P = 128, then variants, then methods at other budgets."""
    chosen = list(methods) if methods else list(ALL)
    at = [(name, BUDGET) for name in ALL]
    at += [(name, budget) for budget in BUDGETS if budget != BUDGET for name in METHODS]
    return [
        Cell(name, budget, seed)
        for name, budget in at
        if name in chosen and budget in (budgets or BUDGETS) and budget >= ALL[name].min_budget
        for seed in seeds or SEEDS
    ]
