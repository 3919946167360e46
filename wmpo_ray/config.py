"""Every setting of a run: frozen pydantic models, checked once when they are loaded, then read directly.

A preset is a TOML file in `wmpo_ray/presets`; a user's file names one with `preset = "demo"` and lists only what
differs. Unknown keys are refused. `load_config` is the way in.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from wmpo_ray.config_cluster import (
    CheckpointConfig,
    ClusterConfig,
    FaultsConfig,
    MonitoringConfig,
    PlacementConfig,
    WeightsConfig,
)
from wmpo_ray.config_section import Count, NonNegative, Positive, Section, Share, check_local, shown

_NAME = re.compile(r"\w([\w .+-]{0,58}[\w+-])?")


class EnvironmentConfig(Section):
    kind: str = "pocket"
    horizon: Count = 32  # frames per episode, a multiple of rollout.chunk_length
    disruption: Literal["none", "position", "background", "texture"] = "none"


class DemosConfig(Section):
    num_trajectories: Count = 60
    action_noise: NonNegative = 0.2  # pixels, added to the expert's targets


class TinyPolicyConfig(Section):
    width: Count = 96
    num_layers: Count = 2
    num_heads: Count = 4
    patch_size: Count = 8
    num_bins: Annotated[int, Field(ge=2)] = 256
    num_bases: Annotated[int, Field(ge=0)] = 24  # smooth bumps that bin logits are built from; 0: independent bins
    mlp_ratio: Positive = 4.0


class CloningConfig(Section):
    steps: Count = 500
    batch_size: Count = 64
    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0


class PolicyConfig(Section):
    kind: str = "tiny"
    network: TinyPolicyConfig = TinyPolicyConfig()
    cloning: CloningConfig = CloningConfig()


class CollectConfig(Section):
    num_trajectories: Annotated[int, Field(ge=2)] = 128  # the real budget P of the paper
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    temperature: Positive = 1.0


class NetworkConfig(Section):
    """Size and options of STDiT; the defaults are those of the embedded model, see `wmpo_ray/world_models/stdit.py`."""

    hidden_size: Count = 128
    depth: Count = 3
    num_heads: Count = 4
    mlp_ratio: Positive = 3.0
    patch_size: tuple[Count, Count, Count] = (1, 4, 4)
    qk_norm: bool = False
    pred_sigma: bool = False
    input_sq_size: Count = 16
    mlp_activation: Literal["gelu_tanh", "silu"] = "silu"
    gate: Literal["plain", "one_plus"] = "one_plus"
    per_block_modulation: bool = True


class DenoiserConfig(Section):
    """What stands between the network and the schedule. Published weights need the defaults of this class."""

    prediction: Literal["velocity", "sample"] = "velocity"
    input_scaling: bool = False  # multiply the noisy frames by (1 - t)
    residual: bool = False  # the network's output is added to the clean last conditioning frame
    conditioning_noise: Share = 0.015  # noise level of conditioning frames in training
    sampling_noise: Share = 0.0  # the same while sampling
    changed_pixel_weight: Positive = 1.0  # weight in the loss of pixels that differ from the last conditioning frame
    changed_pixel_threshold: Positive = 0.2
    action_bands: Annotated[int, Field(ge=0)] = 0  # sin/cos features for each action dimension
    action_map: bool = False  # draw the target into extra input channels: for actions that are places in the image
    time_distribution: Literal["uniform", "logit_normal"] = "logit_normal"
    pure_noise_share: Share = 0.0  # share of training samples at t = 1
    precision: Literal["fp32", "bf16"] = "fp32"


class SamplerConfig(Section):
    num_steps: Count = 30
    shift: Positive = 1.0  # resolution shift of the time axis, 1: none


class WorldModelTrainingConfig(Section):
    steps: Count = 300
    batch_size: Count = 32
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    warmup_steps: Count = 20
    decay_share: Share = 0.45  # the last part of training, over which the learning rate falls to `final_share`
    final_share: Share = 0.02
    ema_decay: Share = 0.99
    demo_share: Share = 0.3  # share of expert demonstrations among the windows
    self_context_share: Share = 0.5  # share of batches whose context is the model's own previous chunk
    self_context_start: Share = 0.0  # share of the steps before the first such batch
    contact_weight: Positive = 1.0  # sampling weight of windows with contact (play) or a change of the grip (alignment)
    vertical_flip: bool = True


class WorldModelConfig(Section):
    kind: Literal["diffusion", "simulator"] = "diffusion"
    pretrained: str = "embedded-a"  # a folder, or the name of one shipped in the package; "" trains from nothing
    context_frames: Count = 2  # c
    codec: str = "pixel"
    network: NetworkConfig = NetworkConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()
    alignment: WorldModelTrainingConfig = WorldModelTrainingConfig()

    @field_validator("pretrained", "codec")
    @classmethod
    def _check_path(cls, path: str, info: ValidationInfo) -> str:
        return check_local(path, f"world_model.{info.field_name}")


class RewardNetworkConfig(Section):
    hidden_size: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    patch_size: Count = 8
    tubelet_size: Count = 2


class VerifyConfig(Section):
    """An imagined success counts only if the same actions also succeed in a second world model."""

    enabled: bool = False
    pretrained: str = "embedded-b"

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "reward.verify.pretrained")


class RewardConfig(Section):
    kind: str = "videomae"
    clip_length: Annotated[int, Field(ge=2)] = 4  # L
    min_steps: Annotated[int, Field(ge=0)] = 0  # windows that end before are not judged
    network: RewardNetworkConfig = RewardNetworkConfig()
    steps: Count = 800
    batch_size: Annotated[int, Field(ge=4)] = 64
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.05
    pixel_noise: NonNegative = 4.0  # of 255, augmentation
    success_margin: Count = 2  # clips of a success that end this close to its end are no negatives
    swapped_share: Share = 0.1  # share of negatives that are terminal clips with another instruction
    verify: VerifyConfig = VerifyConfig()


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
    max_grad_norm: Positive = 1.0
    max_skipped_steps: Count = 5  # steps with a NaN loss before the run gives up
    trained_parameters: str = ""  # regular expression on parameter names, such as "lora_"; "": all are trained


class EvaluationConfig(Section):
    num_starts: Count = 512
    temperature: NonNegative = 1.0  # 0: the most likely action
    every_updates: Annotated[int, Field(ge=0)] = 5  # real success on the way, for the curves; 0: never
    num_starts_on_the_way: Count = 128


class Config(Section):
    """A whole run."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
