"""The sections of the configuration for VideoMAE classifiers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from wmpo_ray.config.models import RewardConfig
from wmpo_ray.core.section import Count, Depth, Positive, Section, Width, check_heads


class RewardNetworkConfig(Section):
    hidden_size: Width = 64
    num_layers: Depth = 2
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    patch_size: Count = 8
    tubelet_size: Count = 2

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(self.hidden_size, self.num_heads, "reward.network.hidden_size")
        return self


class NetworkRewardConfig(RewardConfig):
    """Of reward models that are a VideoMAE: `network` belongs to the weights, and a pretrained model brings its own."""

    network: RewardNetworkConfig = RewardNetworkConfig()

    @model_validator(mode="after")
    def _check_tubelets(self) -> Self:
        if self.clip_length % self.network.tubelet_size:
            raise ValueError(
                f"reward.clip_length={self.clip_length} is not a multiple of reward.network.tubelet_size="
                f"{self.network.tubelet_size}; set one of them"
            )
        return self


class VideoMAERewardConfig(NetworkRewardConfig):
    kind: Literal["videomae"] = "videomae"
