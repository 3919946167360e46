"""Every setting of a run: frozen pydantic models, checked once when they are loaded, then read directly.

A preset is a TOML file in `wmpo_ray/config/presets`; a user's file names one with `preset = "demo"` and lists only what
differs. Unknown keys are refused, and so are settings of a kind that was not chosen. `load_config` is the way in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from wmpo_ray.config.algorithms import (
    SECTIONS,
    AlgorithmConfig,
    AlgorithmSections,
    DpoConfig,
    FilteredBcConfig,
    GrpoConfig,
    OfflineSection,
    RolloutBcConfig,
    TrainingSection,
    unchosen,
)
from wmpo_ray.config.cluster import (
    CheckpointConfig,
    ClusterConfig,
    FaultsConfig,
    MonitoringConfig,
    PlacementConfig,
    WeightsConfig,
)
from wmpo_ray.config.environments import EnvironmentConfig
from wmpo_ray.config.episode_sources import PretrainConfig, RecordedSection
from wmpo_ray.config.kind_sections import chosen_section, default_section
from wmpo_ray.config.models import (
    AugmentationConfig,
    CloningConfig,
    PolicyConfig,
    RewardConfig,
    VerifyConfig,
    WorldModelConfig,
    WorldModelTrainingConfig,
)
from wmpo_ray.config.sampling import FilterConfig, RolloutConfig
from wmpo_ray.config.schedule import ScheduleConfig
from wmpo_ray.core.section import NonNegative, Positive, Section, Share, Trajectories, shown
from wmpo_ray.kinds import ENVIRONMENTS, POLICIES, REWARD_MODELS, WORLD_MODELS

__all__ = [
    "AlgorithmConfig",
    "AugmentationConfig",
    "CheckpointConfig",
    "CloningConfig",
    "ClusterConfig",
    "CollectConfig",
    "Config",
    "DemosConfig",
    "DpoConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "FilterConfig",
    "FilteredBcConfig",
    "GateConfig",
    "GrpoConfig",
    "MonitoringConfig",
    "PlacementConfig",
    "PolicyConfig",
    "PretrainConfig",
    "RecipeConfig",
    "RewardConfig",
    "RolloutBcConfig",
    "RolloutConfig",
    "TrainingSection",
    "VerifyConfig",
    "WeightsConfig",
    "WorldModelConfig",
    "WorldModelTrainingConfig",
]

NAME = re.compile(r"\w([\w .+-]{0,58}[\w+-])?")
NAME_RULE = (
    'a folder is called after it, so at most 60 letters, digits, spaces and "_", ".", "+", "-" are allowed, with a letter, '
    'digit or "_" first'
)


# Episodes that an environment worker steps together, and writes before it takes others; 0: as many as 1 GiB of frames
# holds, of a policy 64 at most.
BatchOfEpisodes = Annotated[int, Field(ge=0, le=10**4)]


class DemosConfig(RecordedSection):
    num_trajectories: Trajectories = 60
    action_noise: NonNegative = 0.2  # pixels, added to the expert's targets; with metaworld to its actions in [-1, 1]
    episodes_per_batch: BatchOfEpisodes = 0  # noise is drawn for a batch, so it depends on this


class CollectConfig(RecordedSection):
    num_trajectories: Annotated[int, Field(ge=2, le=10**7)] = 128  # the real budget P of the paper
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    temperature: Positive = 1.0
    episodes_per_batch: BatchOfEpisodes = 0  # of the held-out ones, too


class GateConfig(RecordedSection):
    """Bounds that the imagined world must meet before `optimize` starts."""

    num_trajectories: Trajectories = 256  # evaluation rollouts on held-out start states, not counted in P
    min_label_agreement: Share = 0.85
    min_f1: Share = 0.85
    min_event_agreement: Share = 0.8
    max_success_gap: Share = 0.12
    max_false_positives: Share = 1.0  # of all replays: successes that are imagined only, which a policy can exploit
    min_safe_horizon: Annotated[int, Field(ge=0)] = 0  # steps for which outcomes agree as often as labels must
    num_counterfactuals: Annotated[int, Field(ge=0)] = 64  # replays with the actions of another episode; 0: none


# What a recipe is about, unless the user says otherwise: the settings that a preset made for another recipe has not.
IMPLIED_BY_RECIPE: Mapping[str, Mapping[str, Mapping[str, str | int]]] = {
    "grpo-online": {"rollout": {"world": "environment"}},
    "dpo": {"algorithm": {"kind": "dpo"}},
    "bc-real": {"algorithm": {"kind": "filtered_bc"}},
    # All rollouts are the base policy's.
    "bc-imagined": {"algorithm": {"kind": "rollout_bc"}, "filter": {"max_staleness": 10**6}},
}


class RecipeConfig(Section):
    """Which stages a run has; `cluster/recipes/recipe_table.py` lists them."""

    kind: str = "wmpo"  # or "grpo-online", "dpo", "bc-real", "bc-imagined", "bc-expert", "pretrain"
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1  # of collecting with the last policy and improving it


class EvaluationConfig(Section):
    num_starts: Trajectories = 512
    temperature: NonNegative = 1.0  # 0: the most likely action
    episodes_per_batch: BatchOfEpisodes = 0
    every_updates: Annotated[int, Field(ge=0)] = 5  # real success on the way, for the curves; 0: never
    num_starts_on_the_way: Trajectories = 128  # other ones than those of the final evaluation
    final_policy: Literal["last", "best"] = "last"  # of a round; "best": of the highest success on the way


class Config(AlgorithmSections):
    """A whole run."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    recipe: RecipeConfig = RecipeConfig()
    environment: Annotated[SerializeAsAny[EnvironmentConfig], chosen_section(ENVIRONMENTS, EnvironmentConfig)] = (
        default_section(ENVIRONMENTS)
    )
    demos: DemosConfig = DemosConfig()
    policy: Annotated[SerializeAsAny[PolicyConfig], chosen_section(POLICIES, PolicyConfig)] = default_section(POLICIES)
    collect: CollectConfig = CollectConfig()
    world_model: Annotated[SerializeAsAny[WorldModelConfig], chosen_section(WORLD_MODELS, WorldModelConfig)] = (
        default_section(WORLD_MODELS)
    )
    reward: Annotated[SerializeAsAny[RewardConfig], chosen_section(REWARD_MODELS, RewardConfig)] = default_section(
        REWARD_MODELS
    )
    pretrain: PretrainConfig = PretrainConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    gate: GateConfig = GateConfig()
    rollout: RolloutConfig = RolloutConfig()
    filter: FilterConfig = FilterConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    placement: PlacementConfig = PlacementConfig()
    weights: WeightsConfig = WeightsConfig()
    faults: FaultsConfig = FaultsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"name = {shown(name)}: {NAME_RULE}; change name")
        return name

    @property
    def num_chunks(self) -> int:
        """N: decisions in a rollout."""
        return self.rollout.num_chunks or self.episode_chunks

    @property
    def episode_chunks(self) -> int:
        """Decisions in a whole episode."""
        return self.environment.horizon // self.rollout.chunk_length

    @property
    def rollout_horizon(self) -> int:
        """T: actions and frames of a rollout."""
        return self.num_chunks * self.rollout.chunk_length

    @property
    def judges_while_imagining(self) -> bool:
        """Whether the reward model stands beside the world model, and ends trajectories at their success."""
        return self.rollout.world == "imagination" and self.reward.placement == "with_imagination"

    @property
    def max_staleness(self) -> int:
        """`filter.max_staleness`, of which more than all updates means nothing."""
        return min(self.filter.max_staleness, self.training.num_updates)

    @property
    def training(self) -> TrainingSection:
        """The settings of the chosen algorithm."""
        return getattr(self, self.algorithm.section)

    @property
    def num_decisions(self) -> int:
        """Decisions in a trajectory that the policy is trained on, at most."""
        if self.training.learns_every_step:
            return self.environment.horizon
        return self.episode_chunks if isinstance(self.training, OfflineSection) else self.num_chunks

    @property
    def trajectories_per_update(self) -> int:
        """B * G rollouts, or, for an algorithm that learns from recorded episodes, how many of them it draws."""
        if isinstance(self.training, OfflineSection):
            return self.training.episodes_per_update
        return self.rollout.group_size * self.rollout.groups_per_update

    @property
    def trained_parameters(self) -> str:
        """What the chosen algorithm trains, a regular expression on parameter names."""
        return self.training.trained_parameters or self.policy.trained_parameters

    @model_validator(mode="after")
    def _check_algorithm(self) -> Self:
        chosen, settings = self.algorithm.section, self.training
        for name in SECTIONS.keys() - {chosen}:
            section, default = getattr(self, name), type(getattr(self, name))()
            for key, value in section:
                if value != getattr(default, key):
                    raise ValueError(unchosen(f"{name}.{key}", value, name, self.algorithm.kind))
        try:
            re.compile(settings.trained_parameters)
        except re.error as error:
            raise ValueError(
                f"{chosen}.trained_parameters = {shown(settings.trained_parameters)} is not a regular expression: {error}; "
                f"set {chosen}.trained_parameters"
            ) from None
        settings.check(chosen, self.rollout.group_size)
        if settings.minibatch_trajectories > self.trajectories_per_update:
            raise ValueError(
                f"{chosen}.minibatch_trajectories={settings.minibatch_trajectories} is more than the "
                f"{self.trajectories_per_update} trajectories of an update; set {chosen}.minibatch_trajectories"
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        horizon, chunk = self.environment.horizon, self.rollout.chunk_length
        if horizon % chunk:
            raise ValueError(
                f"environment.horizon={horizon} is not a multiple of rollout.chunk_length={chunk}; "
                f"set environment.horizon to {horizon // chunk * chunk or chunk}"
            )
        if self.reward.clip_length > horizon + 1:
            raise ValueError(
                f"reward.clip_length={self.reward.clip_length} is longer than a trajectory of {horizon + 1} frames; "
                "set reward.clip_length"
            )
        self.rollout.check(horizon // chunk, self.reward.clip_length)
        for key in ("keyframes_per_episode", "slots"):
            if (value := getattr(self.rollout, key)) and not self.world_model.is_learned:
                raise ValueError(
                    f"rollout.{key}={value} needs a learned world_model.kind: {shown(self.world_model.kind)} neither goes on "
                    "from a frame nor steps some of its trajectories; set it to 0"
                )
        if self.rollout.max_trajectories and self.filter.max_staleness:
            raise ValueError(
                f"rollout.max_trajectories={self.rollout.max_trajectories} is counted update by update: set "
                f"filter.max_staleness={self.filter.max_staleness} to 0"
            )
        if self.reward.verify.enabled and not self.world_model.is_learned:
            raise ValueError(
                f"reward.verify.enabled needs world_model.kind of a learned model: {shown(self.world_model.kind)} is never "
                "wrong; set reward.verify.enabled to false"
            )
        return self
