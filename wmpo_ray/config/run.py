"""Every setting of a run: frozen pydantic models, checked once when they are loaded, then read directly.

A preset is a TOML file in `wmpo_ray/presets`; a user's file names one with `preset = "demo"` and lists only what
differs. Unknown keys are refused. `load_config` is the way in.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.config.cluster import (
    CheckpointConfig,
    ClusterConfig,
    FaultsConfig,
    MonitoringConfig,
    PlacementConfig,
    WeightsConfig,
)
from wmpo_ray.config.models import (
    CloningConfig,
    DenoiserConfig,
    NetworkConfig,
    OpenVLAPolicyConfig,
    PolicyConfig,
    RewardConfig,
    RewardNetworkConfig,
    SamplerChoice,
    SamplerConfig,
    TinyPolicyConfig,
    VerifyConfig,
    WorldModelConfig,
    WorldModelTrainingConfig,
)
from wmpo_ray.core.section import Count, NonNegative, Positive, Section, Share, shown

__all__ = [
    "CheckpointConfig",
    "CloningConfig",
    "ClusterConfig",
    "CollectConfig",
    "Config",
    "DemosConfig",
    "DenoiserConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "FilterConfig",
    "GateConfig",
    "GrpoConfig",
    "MonitoringConfig",
    "NetworkConfig",
    "OpenVLAPolicyConfig",
    "PlacementConfig",
    "PolicyConfig",
    "RecipeConfig",
    "RewardConfig",
    "RewardNetworkConfig",
    "RolloutConfig",
    "SamplerChoice",
    "SamplerConfig",
    "TinyPolicyConfig",
    "VerifyConfig",
    "WeightsConfig",
    "WorldModelConfig",
    "WorldModelTrainingConfig",
]

_NAME = re.compile(r"\w([\w .+-]{0,58}[\w+-])?")


class EnvironmentConfig(Section):
    kind: str = "pocket"  # or "mimicgen"
    task: str = ""  # of "mimicgen", such as "Coffee_D0"
    horizon: Count = 32  # frames per episode, a multiple of rollout.chunk_length
    disruption: Literal["none", "position", "background", "texture"] = "none"


class DemosConfig(Section):
    num_trajectories: Count = 60
    action_noise: NonNegative = 0.2  # pixels, added to the expert's targets


class CollectConfig(Section):
    num_trajectories: Annotated[int, Field(ge=2)] = 128  # the real budget P of the paper
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    temperature: Positive = 1.0


class GateConfig(Section):
    """Bounds that the imagined world must meet before `optimize` starts."""

    num_trajectories: Count = 256  # evaluation rollouts on held-out start states, not counted in P
    min_label_agreement: Share = 0.85
    min_f1: Share = 0.85
    min_event_agreement: Share = 0.8
    max_success_gap: Share = 0.12


class RolloutConfig(Section):
    chunk_length: Count = 4  # K
    group_size: int = 8  # G
    groups_per_update: Count = 40  # B
    groups_per_request: Count = 4  # groups that one actor imagines in one batch
    temperature: Positive = 1.0
    speculation: Share = 0.0  # groups imagined ahead beyond those that may be needed, as a share of B: shorter tails
    max_attempts: Count = 512  # groups issued for one update before the run gives up

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: GRPO needs at least 2; set rollout.group_size")
        if self.max_attempts < self.groups_per_update:
            raise ValueError(
                f"max_attempts={self.max_attempts} is below groups_per_update={self.groups_per_update}; "
                "set rollout.max_attempts"
            )
        return self


class FilterConfig(Section):
    max_staleness: Annotated[int, Field(ge=0)] = 0  # updates that a group's weights may lie behind the learner's
    min_mean: Share = 0.0  # a group whose success rate is outside [min_mean, max_mean] is dropped
    max_mean: Share = 1.0


class GrpoConfig(Section):
    num_updates: Count = 15
    learning_rate: Positive = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    clip_low: Share = 0.20
    clip_high: Positive = 0.28
    ratio: Literal["chunk", "token"] = "chunk"
    minibatch_trajectories: Count = 64
    num_epochs: Count = 1
    # Chunks that a learner rank computes at once, which bounds the memory of activations; 0: its whole mini-batch.
    chunks_per_pass: Annotated[int, Field(ge=0)] = 0
    advantage_std: Literal["population", "unbiased"] = "population"  # Algorithm 1, or the reference's with its 1e-6
    max_grad_norm: Positive = 1.0
    max_skipped_steps: Count = 5  # steps with a NaN loss before the run gives up
    trained_parameters: str = ""  # regular expression on parameter names, such as "lora_"; "": all, or all adapters


class RecipeConfig(Section):
    """Which stages a run has; `cluster/recipes/recipe_table.py` lists them."""

    kind: str = "wmpo"  # or "grpo-online", "dpo", "bc-real"
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1  # of collecting with the last policy and improving it


class EvaluationConfig(Section):
    num_starts: Count = 512
    temperature: NonNegative = 1.0  # 0: the most likely action
    every_updates: Annotated[int, Field(ge=0)] = 5  # real success on the way, for the curves; 0: never
    num_starts_on_the_way: Count = 128


class Config(Section):
    """A whole run."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    recipe: RecipeConfig = RecipeConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    demos: DemosConfig = DemosConfig()
    policy: PolicyConfig = PolicyConfig()
    collect: CollectConfig = CollectConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    reward: RewardConfig = RewardConfig()
    gate: GateConfig = GateConfig()
    rollout: RolloutConfig = RolloutConfig()
    filter: FilterConfig = FilterConfig()
    grpo: GrpoConfig = GrpoConfig()
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
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"name = {shown(name)}: a run's folder is called after it, so at most 60 letters, digits, spaces and "
                '"_", ".", "+", "-" are allowed, with a letter, digit or "_" first; change name'
            )
        return name

    @property
    def num_chunks(self) -> int:
        """N: decisions in a trajectory."""
        return self.environment.horizon // self.rollout.chunk_length

    @property
    def trained_parameters(self) -> str:
        """What GRPO trains, a regular expression on parameter names."""
        return self.grpo.trained_parameters or ("lora_" if self.policy.openvla.lora_rank else "")

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
        if self.reward.clip_length % self.reward.network.tubelet_size:
            raise ValueError(
                f"reward.clip_length={self.reward.clip_length} is not a multiple of reward.network.tubelet_size="
                f"{self.reward.network.tubelet_size}; set one of them"
            )
        if self.filter.min_mean > self.filter.max_mean:
            raise ValueError(f"filter.min_mean={self.filter.min_mean} is above filter.max_mean={self.filter.max_mean}")
        group = self.rollout.group_size * self.rollout.groups_per_update
        if self.grpo.minibatch_trajectories > group:
            raise ValueError(
                f"grpo.minibatch_trajectories={self.grpo.minibatch_trajectories} is more than the {group} trajectories "
                "of an update; set grpo.minibatch_trajectories"
            )
        if self.reward.verify.enabled and self.world_model.kind == "simulator":
            raise ValueError('reward.verify.enabled needs world_model.kind = "diffusion": a simulator is never wrong')
        return self
