"""What is compared: methods and variants, each a few settings of the demo, over real budgets and seeds.

A cell is one of them at one budget and seed. Cells share the stages that do not differ: `world` bases have the
demonstrations, the base policy, P real episodes, the aligned world model and the reward model; `verified` bases have the
second world model as well. Runs of several rounds go on from the finished run of the method that they repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BUDGET, SEEDS = 128, (0, 1, 2)
BUDGETS = (32, 64, 128, 512)
UPDATES = 30
SHORT = 15  # updates of ablations, and of what they are compared with
ROUNDS = 3
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
    repeats: str = ""  # the method whose finished run this one goes on from


def _grpo(*settings: str, updates: int = UPDATES) -> tuple[str, ...]:
    return (f"grpo.num_updates={updates}", *settings)


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


def _offline(recipe: str, section: str, updates: int, learning_rate: float, *settings: str) -> tuple[str, ...]:
    return (
        f"recipe.kind={recipe}",
        f"{section}.num_updates={updates}",
        f"{section}.learning_rate={learning_rate}",
        f"{section}.episodes_per_update={{half}}",
        f"{section}.minibatch_trajectories={{half}}",
        *settings,
    )


def _cloning(updates: int, decisions: str) -> tuple[str, ...]:
    return _offline("bc-real", "filtered_bc", updates, 1e-4, f"filtered_bc.decisions={decisions}")


METHODS = {
    "wmpo": Method("WMPO", _grpo()),
    # A batch of 8 trajectories and one of 64, the learning rate scaled with the square root of it.
    "grpo-online-8": Method("online GRPO, batch 8", _online(1, 3.5e-5)),
    "grpo-online-64": Method("online GRPO, batch 64", _online(8, 1e-4), min_budget=64),
    "dpo": Method("DPO, rate 1e-5", _offline("dpo", "dpo", 30, 1e-5)),
    "dpo-fast": Method("DPO, rate 5e-5", _offline("dpo", "dpo", 15, 5e-5)),
    "bc-real": Method("cloning of real successes, every step", _cloning(30, "every_step")),
    "bc-real-chunks": Method("cloning of real successes, decisions", _cloning(30, "chunks")),
    "bc-real-long": Method("cloning of real successes, 120 updates", _cloning(120, "chunks")),
    "bc-imagined": Method(
        "cloning of imagined successes", ("recipe.kind=bc-imagined", f"rollout_bc.num_updates={UPDATES}")
    ),
}
VERIFICATION = {
    "refute": Method("a disputed success is a failure", _grpo("reward.verify.disputed=failure"), "verified"),
    "abstain": Method("a disputed success is unknown", _grpo("reward.verify.disputed=unknown"), "verified"),
}


def _ablation(title: str, *settings: str) -> Method:
    return Method(title, _grpo(*settings, updates=SHORT))


def _learner(title: str, kind: str, *settings: str) -> Method:
    return Method(title, (f"algorithm.kind={kind}", f"{kind}.num_updates={SHORT}", *settings))


REFERENCE = "short"
ABLATIONS = {
    REFERENCE: _ablation("nothing changed"),
    "no-dynamic-sampling": _ablation("no dynamic sampling", "filter.dynamic_sampling=false"),
    "token-ratio": _ablation("a ratio for each token", "grpo.ratio=token"),
    "symmetric-clip": _ablation("symmetric clipping, 0.2", "grpo.clip_high=0.2"),
    "no-alignment": _ablation("no policy behaviour alignment", "world_model.alignment.steps=0"),
    "demos-alignment": _ablation("alignment on demonstrations only", "world_model.alignment.demo_share=1.0"),
    "no-noise": _ablation("conditioning frames without noise", "world_model.alignment.conditioning_noise=0.0"),
    "clip-actions": _ablation("one action embedding for a clip", "world_model.alignment.action_level=clip"),
    # Of 512 groups of single clips 22 had mixed outcomes: a batch needs many.
    "single-clips": _ablation(
        "single clips", "rollout.num_chunks=1", "rollout.keyframes_per_episode=8", "rollout.max_attempts=4096"
    ),
    "signal-starts": _ablation("starts by expected signal", "rollout.start_order=signal"),
    "keyframes": _ablation("keyframes as further starts", "rollout.keyframes_per_episode=3"),
    "two-steps": _ablation("two sampling steps", "world_model.sampler.num_steps=2"),
    "five-steps": _ablation("five sampling steps", "world_model.sampler.num_steps=5"),
    "ten-steps": _ablation("ten sampling steps", "world_model.sampler.num_steps=10"),
    "staleness-1": _ablation("rollouts one update old", "filter.max_staleness=1"),
    "two-epochs": _ablation("two epochs an update", "grpo.num_epochs=2"),
    "small-minibatches": _ablation("mini-batches of 16 trajectories", "grpo.minibatch_trajectories=16"),
    "faster-rate": _ablation("three times the learning rate", "grpo.learning_rate=3e-4"),
    "small-updates": Method(
        "four updates of a quarter of the groups", _grpo("rollout.groups_per_update=10", updates=4 * SHORT)
    ),
    "ratio-mean": _ablation("a mean over all ratios (DAPO)", "grpo.loss_mean=ratio"),
    "overlong": _ablation("rewards fall over the last 8 steps (DAPO)", "grpo.overlong_steps=8"),
    "no-deviation": _ablation("advantages not divided (Dr. GRPO)", "grpo.advantage_std=none"),
    "dr-grpo": _ablation("the whole of Dr. GRPO", "grpo.advantage_std=none", "grpo.loss_mean=horizon"),
    "rloo": _learner("RLOO", "rloo"),
    "reinforce-pp": _learner("REINFORCE++", "reinforce_pp"),
    "reinforce-pp-baseline": _learner("REINFORCE++ with baseline", "reinforce_pp", "reinforce_pp.baseline=group"),
    "gspo": _learner("GSPO, bounds of its paper", "gspo"),
    "gspo-wide": _learner("GSPO, bounds 0.03 and 0.04", "gspo", "gspo.clip_low=0.03", "gspo.clip_high=0.04"),
    "perfect-world": _ablation("the simulator as world model", "world_model.kind=simulator"),
    **{
        f"{short}-{percent}": _ablation(f"{percent}% {title}", f"reward.label_noise.{key}={percent / 100}")
        for short, key, title in (
            ("false-positives", "false_positives", "of failures called successes"),
            ("false-negatives", "false_negatives", "of successes called failures"),
        )
        for percent in (5, 10, 20)
    },
}
# Rounds go on from a shorter run, which leaves them something to gain.
LIFELONG = {
    "wmpo-rounds": Method("WMPO", (*ABLATIONS[REFERENCE].settings, f"recipe.rounds={ROUNDS}"), repeats=REFERENCE),
    "dpo-rounds": Method("DPO", (*METHODS["dpo"].settings, f"recipe.rounds={ROUNDS}"), repeats="dpo"),
    "bc-expert-rounds": Method("more demonstrations", ("recipe.kind=bc-expert", f"recipe.rounds={ROUNDS}")),
}
ALL = METHODS | VERIFICATION | {REFERENCE: ABLATIONS[REFERENCE]} | LIFELONG | ABLATIONS


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
    def before(self) -> Cell | None:
        """The cell whose finished run this one goes on from."""
        repeated = ALL[self.method].repeats
        return Cell(repeated, self.budget, self.seed) if repeated else None

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
    """Cells in their order of importance: everything at P = 128, then the methods at other budgets."""
    chosen = list(methods) if methods else list(ALL)
    at = [(name, BUDGET) for name in ALL]
    at += [(name, budget) for budget in BUDGETS if budget != BUDGET for name in METHODS]
    return [
        Cell(name, budget, seed)
        for name, budget in at
        if name in chosen and budget in (budgets or BUDGETS) and budget >= ALL[name].min_budget
        for seed in seeds or SEEDS
    ]
