"""Chooses the algorithm that trains the policy; one section of settings for each kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.core.section import Count, NonNegative, Positive, Section, Share, Trajectories, shown

Source = Literal["online", "offline"]
Beta = Annotated[float, Field(ge=0, lt=1)]  # of a running mean


class AlgorithmConfig(Section):
    # Or "rloo", "reinforce_pp", "gspo", "rollout_bc", "filtered_bc", "dpo", or one that an installed package brings.
    kind: str = "grpo"
    settings: str = ""  # the section that an algorithm from a package reads, such as "grpo"; "": the one named `kind`

    @property
    def section(self) -> str:
        return self.settings or self.kind

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.section not in SECTIONS:
            key, known = ("settings" if self.settings else "kind"), ", ".join(SECTIONS)
            raise ValueError(
                f"algorithm.{key} = {shown(self.section)}: known are {known}; for an algorithm from a package set "
                "algorithm.settings to the one of these sections that it reads"
            )
        return self


class TrainingSection(Section):
    """Settings of the optimizer steps that every algorithm has."""

    implementation: ClassVar[str] = ""  # "module:Class" of the algorithm that the section is named after
    source: ClassVar[Source]  # rollouts of the newest weights, or recorded episodes
    num_updates: Annotated[int, Field(ge=1, le=10**7)] = 15
    learning_rate: Positive = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    minibatch_trajectories: Trajectories = 64
    num_epochs: Count = 1
    # Chunks that a learner rank computes at once, which bounds the memory of activations; 0: its whole mini-batch.
    chunks_per_pass: Annotated[int, Field(ge=0)] = 0
    max_grad_norm: Positive = 1.0
    max_skipped_steps: Count = 5  # steps with a NaN loss before the run gives up
    trained_parameters: str = ""  # regular expression on parameter names, such as "lora_"; "": all, or all adapters

    @property
    def learns_every_step(self) -> bool:
        """What to do is learned at every step, not only where a chunk begins."""
        return False

    def check(self, name: str, group_size: int) -> None:
        """Raises ValueError for sizes that do not fit each other; `name`: of the section."""


class GroupSection(TrainingSection):
    """An algorithm that compares the rollouts of a group, made by the newest weights."""

    source: ClassVar[Source] = "online"

    # The reward falls by up to 1 over so many steps before the horizon (DAPO's overlong shaping); 0: it does not.
    overlong_steps: Annotated[int, Field(ge=0)] = 0
    # Groups that the learner goes forward and backward through at once, as soon as they are settled (with
    # cluster.stream_updates), summing up the gradient of a mini-batch in issue order; 0: it waits for the mini-batch.
    groups_per_pass: Annotated[int, Field(ge=0)] = 0

    def check(self, name: str, group_size: int) -> None:
        key, per_pass = f"{name}.groups_per_pass", self.groups_per_pass
        if per_pass and self.num_epochs > 1:
            raise ValueError(
                f"{key}={per_pass} sums up a gradient while its mini-batch fills, which only the first epoch can: it needs "
                f"{name}.num_epochs=1, not {self.num_epochs}; set {key} to 0"
            )
        if per_pass * group_size > self.minibatch_trajectories:
            raise ValueError(
                f"{key}={per_pass} is {per_pass * group_size} trajectories (rollout.group_size={group_size}), more than "
                f"{name}.minibatch_trajectories={self.minibatch_trajectories}; set {key} to at most "
                f"{self.minibatch_trajectories // group_size}"
            )


class GrpoConfig(GroupSection):
    """Group-relative policy optimization."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.grpo:Grpo"

    clip_low: Share = 0.20
    clip_high: Positive = 0.28
    ratio: Literal["chunk", "step", "token"] = "chunk"  # "step": of a policy that denoises, see algorithms/grpo.py
    # Algorithm 1, the reference's with its 1e-6, or no division (Dr. GRPO).
    advantage_std: Literal["population", "unbiased", "none"] = "population"
    # Over each trajectory, then over these; over all ratios alike (DAPO); sums over the horizon's length (Dr. GRPO).
    loss_mean: Literal["trajectory", "ratio", "horizon"] = "trajectory"


class RlooConfig(GroupSection):
    """REINFORCE with the mean of the others as the baseline: no ratio, no clipping."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.rloo:Rloo"


class ReinforcePpConfig(GroupSection):
    """REINFORCE++: GRPO's clipped objective, with advantages normalized over the whole batch."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.reinforce_pp:ReinforcePp"

    baseline: Literal["none", "group"] = "none"  # taken from rewards first: nothing, or their group's mean
    clip_low: Share = 0.20
    clip_high: Positive = 0.20
    ratio: Literal["chunk", "step", "token"] = "chunk"


class GspoConfig(GroupSection):
    """Group sequence policy optimization: one ratio for each trajectory, the geometric mean of its tokens'."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.gspo:Gspo"

    clip_low: Share = 3e-4
    clip_high: Positive = 4e-4


class RolloutBcConfig(TrainingSection):
    """Behaviour cloning of the rollouts that succeed."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.rollout_bc:RolloutBc"
    source: ClassVar[Source] = "online"


class OfflineSection(TrainingSection):
    """An algorithm that learns from recorded episodes; an update draws some of them."""

    source: ClassVar[Source] = "offline"

    episodes_per_update: Trajectories = 64  # drawn without replacement; all, where there are fewer

    def check(self, name: str, group_size: int) -> None:
        if self.minibatch_trajectories > self.episodes_per_update:
            raise ValueError(
                f"{name}.minibatch_trajectories={self.minibatch_trajectories} is more than {name}.episodes_per_update="
                f"{self.episodes_per_update}; set {name}.minibatch_trajectories"
            )


class FilteredBcConfig(OfflineSection):
    """Behaviour cloning of the successes."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.filtered_bc:FilteredBc"

    decisions: Literal["every_step", "chunks"] = "chunks"  # what is cloned: where chunks began, or every step

    @property
    def learns_every_step(self) -> bool:
        return self.decisions == "every_step"


class DpoConfig(OfflineSection):
    """Direct preference optimization on pairs of a success and a failure; a pair counts as two trajectories."""

    implementation: ClassVar[str] = "wmpo_ray.algorithms.dpo:Dpo"
    learning_rate: Positive = 1e-5
    beta: Positive = 0.1  # strength of the pull towards the base policy

    def check(self, name: str, group_size: int) -> None:
        super().check(name, group_size)
        for key in ("minibatch_trajectories", "episodes_per_update"):
            if (value := getattr(self, key)) % 2:
                raise ValueError(
                    f"{name}.{key}={value}: a pair is two trajectories, so it must be even; set {name}.{key}"
                )


class AlgorithmSections(Section):
    """The table of algorithms: a kind is the name of its section, whose class names the implementation."""

    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    grpo: GrpoConfig = GrpoConfig()
    rollout_bc: RolloutBcConfig = RolloutBcConfig()
    filtered_bc: FilteredBcConfig = FilteredBcConfig()
    dpo: DpoConfig = DpoConfig()
    rloo: RlooConfig = RlooConfig()
    reinforce_pp: ReinforcePpConfig = ReinforcePpConfig()
    gspo: GspoConfig = GspoConfig()


SECTIONS: dict[str, type[TrainingSection]] = {
    name: type(field.default)
    for name, field in AlgorithmSections.model_fields.items()
    if isinstance(field.default, TrainingSection)
}


def unchosen(key: str, value: object, section: str, kind: str) -> str:
    """What is wrong with a setting of an algorithm that is not the chosen one."""
    return (
        f"{key} = {shown(value)} has no effect: it belongs to the algorithm {section!r}, and algorithm.kind = "
        f'{shown(kind)}; remove the key or set algorithm.kind="{section}"'
    )
