"""The kind `videomae_published`: three channels, and decisions as the reference makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.plan_types import ASSUMED, is_there
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.reward_models.videomae_kind import VideoMAEKind
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from transformers import VideoMAEConfig

    from wmpo_ray.core.interfaces import RewardModel

VIDEOMAE_BASE: dict[str, Any] = {"image_size": 224, "num_frames": 8, "use_mean_pooling": True}


class PublishedRewardConfig(NetworkRewardConfig):
    kind: Literal["videomae_published"] = "videomae_published"

    @model_validator(mode="after")
    def _check_pretrained(self) -> Self:
        if not self.pretrained:
            raise ValueError(
                'reward.pretrained = "": reward.kind = "videomae_published" has no fresh network; set reward.pretrained '
                "to the folder of one"
            )
        return self


class PublishedVideoMAEKind(VideoMAEKind):
    section: ClassVar[type[NetworkRewardConfig]] = PublishedRewardConfig
    libraries: ClassVar[tuple[str, ...]] = ("wmpo_ray.reward_models.published_videomae",)

    def create(self, config: Config, frame_size: FrameSize, instructions: Sequence[str]) -> RewardModel:
        raise ConfigError(
            'reward.kind="videomae_published" has no fresh network; set reward.pretrained to the folder of one'
        )

    def load(self, config: Config, path: str) -> RewardModel:
        from wmpo_ray.reward_models.published_videomae import PublishedRewardModel

        return PublishedRewardModel.load(path)

    def _sizes(self, config: Config, facts: EnvironmentFacts) -> tuple[str, VideoMAEConfig]:
        from transformers import VideoMAEConfig

        from wmpo_ray.model_files.weight_files import find_weights
        from wmpo_ray.reward_models.published_videomae import published_config

        folder = config.reward.pretrained
        if is_there(folder):
            return folder, published_config(find_weights(folder))
        return ASSUMED, VideoMAEConfig(**VIDEOMAE_BASE)
