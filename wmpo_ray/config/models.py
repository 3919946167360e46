"""Settings of the models: the policy, the world model and the reward model, each with its training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from wmpo_ray.core.section import Count, NonNegative, Positive, Section, Share, check_local, shown

Steps = Annotated[int, Field(ge=0)]  # of a training; 0: the pretrained model is taken as it is
MicroBatch = Annotated[int, Field(ge=0)]  # samples in one forward pass, gradients add up; 0: a worker's whole share


class TinyPolicyConfig(Section):
    width: Count = 96
    num_layers: Count = 2
    num_heads: Count = 4
    patch_size: Count = 8
    num_bins: Annotated[int, Field(ge=2)] = 256
    num_bases: Annotated[int, Field(ge=0)] = 24  # smooth bumps that bin logits are built from; 0: independent bins
    mlp_ratio: Positive = 4.0


class OpenVLAPolicyConfig(Section):
    """What a user chooses of a published OpenVLA-OFT; its sizes are those of its folder."""

    unnorm_key: str = ""  # which statistics of dataset_statistics.json; "": the only ones
    image_steps: Literal["rollout", "no_jpeg", "simulator", "resize"] = "rollout"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # a learner's weights are float32 all the same
    gradient_checkpointing: bool = False
    lora_rank: Annotated[int, Field(ge=0, le=2**12)] = 0  # 0: full fine-tuning
    lora_alpha: Count = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora_dropout and self.gradient_checkpointing:
            raise ValueError(
                f"policy.openvla.lora_dropout={self.lora_dropout}: with gradient_checkpointing GRPO would drop units that "
                "acted in the rollout; set one of them to 0 or false"
            )
        return self


class CloningConfig(Section):
    steps: Steps = 500
    batch_size: Count = 64
    micro_batch_size: MicroBatch = 0
    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0


class PolicyConfig(Section):
    kind: str = "tiny"  # or "openvla_oft"
    pretrained: str = ""  # the folder of a policy to begin with; "": a fresh network, which only "tiny" has
    network: TinyPolicyConfig = TinyPolicyConfig()
    openvla: OpenVLAPolicyConfig = OpenVLAPolicyConfig()
    cloning: CloningConfig = CloningConfig()

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "policy.pretrained")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "openvla_oft" and not self.pretrained:
            raise ValueError(
                'policy.pretrained = "": policy.kind = "openvla_oft" has no fresh network; set policy.pretrained to the '
                "folder of one"
            )
        if not (self.pretrained or self.cloning.steps):
            raise ValueError(
                "policy.cloning.steps=0 takes a policy as it is, and there is none; set policy.pretrained, or "
                "policy.cloning.steps to 1 or more"
            )
        if self.openvla.lora_rank and self.kind != "openvla_oft":
            raise ValueError(
                f'policy.openvla.lora_rank={self.openvla.lora_rank}: adapters need policy.kind = "openvla_oft", this is '
                f"{shown(self.kind)}; set policy.openvla.lora_rank to 0"
            )
        return self


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


Solver = Literal["euler", "unipc"]  # each calls the network once a step


class SamplerChoice(Section):
    """How a world model is sampled, as far as the user chooses; None leaves it to the model."""

    num_steps: Count | None = None
    shift: Positive | None = None  # resolution shift of the time axis, 1: none
    solver: Solver | None = None

    def over(self, own: SamplerConfig) -> SamplerConfig:
        """The model's own settings where nothing else was chosen."""
        return own.model_copy(update=self.model_dump(exclude_none=True))


class SamplerConfig(SamplerChoice):
    """How a world model is sampled."""

    num_steps: Count = 30
    shift: Positive = 1.0
    solver: Solver = "euler"

    @property
    def evaluations_per_chunk(self) -> int:
        """Calls of the network for one chunk, whatever the solver."""
        return self.num_steps


class WorldModelTrainingConfig(Section):
    steps: Steps = 300
    batch_size: Count = 32
    micro_batch_size: MicroBatch = 0
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
    """`network`, `denoiser` and `context_frames` belong to the weights: a pretrained model brings its own."""

    kind: Literal["diffusion", "simulator"] = "diffusion"
    pretrained: str = "embedded-a"  # a folder, ours or a published one, or a name that is shipped; "": from nothing
    context_frames: Count = 2  # c
    codec: str = "pixel"  # or the folder of an AutoencoderKL
    tiny_decoder: str = ""  # the folder of an AutoencoderTiny that decodes in its place
    posterior: Literal["mean", "sample"] = (
        "mean"  # of the autoencoder; the reference samples, here with one fixed noise
    )
    max_decode_bytes: Count | None = None  # memory that decoding may take beside weights and frames
    compile: bool = False  # the network's blocks with torch.compile
    attention: Literal["auto", "flash", "sdpa", "plain"] = "auto"
    network: NetworkConfig = NetworkConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerChoice = SamplerChoice()
    alignment: WorldModelTrainingConfig = WorldModelTrainingConfig()

    @field_validator("pretrained", "codec", "tiny_decoder")
    @classmethod
    def _check_path(cls, path: str, info: ValidationInfo) -> str:
        return check_local(path, f"world_model.{info.field_name}")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "simulator" and not (self.pretrained or self.alignment.steps):
            raise ValueError(
                "world_model.alignment.steps=0 takes a world model as it is, and there is none; set "
                "world_model.pretrained, or world_model.alignment.steps to 1 or more"
            )
        return self


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
    kind: str = "videomae"  # or "videomae_published": three channels, decisions as the reference makes them
    pretrained: str = ""  # the folder of a reward model to begin with; "": a fresh network, which only "videomae" has
    threshold: Share = 0.0  # probability of a success; 0: the best one on validation, or a pretrained model's own
    clip_length: Annotated[int, Field(ge=2)] = 4  # L
    min_steps: Annotated[int, Field(ge=0)] = 0  # windows that end before are not judged
    network: RewardNetworkConfig = RewardNetworkConfig()
    steps: Steps = 800
    batch_size: Annotated[int, Field(ge=4)] = 64
    micro_batch_size: MicroBatch = 0
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.05
    pixel_noise: NonNegative = 4.0  # of 255, augmentation
    success_margin: Count = 2  # clips of a success that end this close to its end are no negatives
    swapped_share: Share = 0.1  # share of negatives that are terminal clips with another instruction
    verify: VerifyConfig = VerifyConfig()

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "reward.pretrained")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "videomae_published" and not self.pretrained:
            raise ValueError(
                'reward.pretrained = "": reward.kind = "videomae_published" has no fresh network; set reward.pretrained '
                "to the folder of one"
            )
        if not (self.pretrained or self.steps):
            raise ValueError(
                "reward.steps=0 takes a reward model as it is, and there is none; set reward.pretrained, or "
                "reward.steps to 1 or more"
            )
        return self
