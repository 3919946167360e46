"""The kind `vlm`: any vision-language model of transformers that reads several pictures and a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.reward_models.reward_kind import RewardModelKind
from wmpo_ray.reward_models.vlm_settings import VlmRewardConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import RewardModel


class VlmKind(RewardModelKind):
    section: ClassVar[type[VlmRewardConfig]] = VlmRewardConfig
    libraries: ClassVar[tuple[str, ...]] = ("wmpo_ray.reward_models.vlm",)

    def create(self, config: Config, frame_size: FrameSize, instructions: Sequence[str]) -> RewardModel:
        raise ConfigError('reward.kind="vlm" has no fresh network; set reward.pretrained to the folder of one')

    def load(self, config: Config, path: str) -> RewardModel:
        from wmpo_ray.reward_models.vlm import VlmRewardModel

        assert isinstance(config.reward, VlmRewardConfig)
        return VlmRewardModel.load(path, config.reward)
