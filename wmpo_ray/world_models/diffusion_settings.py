"""Settings of the diffusion world model: its network, its denoiser, its sampler, and its section as a whole."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from wmpo_ray.config.models import WorldModelConfig, WorldModelTrainingConfig
from wmpo_ray.core.section import Bytes, Count, Depth, Positive, Section, Share, Width, check_heads, check_local


class NetworkConfig(Section):
    """Size and options of STDiT; the defaults are those of the embedded model, see `wmpo_ray/world_models/stdit.py`."""

    hidden_size: Width = 128
    depth: Depth = 3
    num_heads: Count = 4
    mlp_ratio: Positive = 3.0
    patch_size: tuple[Count, Count, Count] = (1, 4, 4)
    qk_norm: bool = False
    pred_sigma: bool = False
    input_sq_size: Count = 16
    mlp_activation: Literal["gelu_tanh", "silu"] = "silu"
    gate: Literal["plain", "one_plus"] = "one_plus"
    per_block_modulation: bool = True

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(self.hidden_size, 2 * self.num_heads, "world_model.network.hidden_size")
        return self


class DenoiserConfig(Section):
    """Settings between the network and the schedule. Published weights need the defaults of this class."""

    prediction: Literal["velocity", "sample"] = "velocity"
    input_scaling: bool = False  # multiply the noisy frames by (1 - t)
    residual: bool = False  # the network's output is added to the clean last conditioning frame
    conditioning_noise: Share = 0.015  # noise level of conditioning frames in training
    sampling_noise: Share = 0.0  # the same while sampling
    changed_pixel_weight: Positive = 1.0  # weight in the loss of pixels that differ from the last conditioning frame
    changed_pixel_threshold: Positive = 0.2
    action_bands: Annotated[int, Field(ge=0)] = 0  # sin/cos features for each action dimension
    action_level: Literal["frame", "clip"] = "frame"  # each frame knows its own action, or all know a chunk's mean
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


class DiffusionConfig(WorldModelConfig):
    """`network`, `denoiser` and `context_frames` belong to the weights: a pretrained model brings its own."""

    kind: Literal["diffusion"] = "diffusion"
    pretrained: str = "embedded-a"  # a folder, ours or a published one, or a name that is shipped; "": from nothing
    context_frames: Count = 2  # c
    codec: str = "pixel"  # or the folder of an AutoencoderKL
    tiny_decoder: str = ""  # the folder of an AutoencoderTiny that decodes in its place
    posterior: Literal["mean", "sample"] = "mean"  # of the autoencoder; sample: as the reference, with one fixed noise
    max_decode_bytes: Bytes | None = None  # memory that decoding may take beside weights and frames
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
        if not (self.pretrained or self.alignment.steps):
            raise ValueError(
                "world_model.alignment.steps=0 takes a world model as it is, and there is none; set "
                "world_model.pretrained, or world_model.alignment.steps to 1 or more"
            )
        return self
