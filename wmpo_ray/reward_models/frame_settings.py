"""The section of the configuration for classifiers of single frames."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.config.models import RewardConfig
from wmpo_ray.core.section import Count, Depth, NonNegative, Positive, Section, Width, check_heads


class FrameNetworkConfig(Section):
    hidden_size: Width = 64
    num_layers: Depth = 2
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    patch_size: Count = 4

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(self.hidden_size, self.num_heads, "reward.network.hidden_size")
        return self


class FrameRewardConfig(RewardConfig):
    kind: Literal["frame"] = "frame"
    clip_length: Annotated[int, Field(ge=1)] = 1  # frames in a row that must show the success
    # Of the loss of the progress head, beside that of the classifier; 0: no progress head is trained.
    progress_weight: NonNegative = 1.0
    shaping: NonNegative = 0.0  # not supported, see below
    network: FrameNetworkConfig = FrameNetworkConfig()

    @model_validator(mode="after")
    def _check_shaping(self) -> Self:
        if self.shaping:
            raise ValueError(
                f"reward.shaping={self.shaping:g}: a potential-based term (Ng, Harada and Russell 1999) adds up to the "
                "potential of the start, which all members of a group share, so that their advantages would not change; "
                "set reward.shaping to 0"
            )
        return self
