"""The kind `frame`: how a classifier of single frames is created, loaded and planned for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wmpo_ray.config.run import Config
from wmpo_ray.core.frame_sizes import FrameSize, frame_size_of, height_and_width
from wmpo_ray.core.plan_types import Blueprint, Depths, is_there
from wmpo_ray.core.section import refuse_ignored
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig
from wmpo_ray.reward_models.reward_kind import RewardModelKind

if TYPE_CHECKING:  # a configuration is read without torch
    from torch import Tensor, nn
    from transformers import ViTConfig

    from wmpo_ray.core.interfaces import RewardModel


class FrameKind(RewardModelKind):
    section: ClassVar[type[FrameRewardConfig]] = FrameRewardConfig
    libraries: ClassVar[tuple[str, ...]] = ("wmpo_ray.reward_models.frame",)

    def create(self, config: Config, frame_size: FrameSize, instructions: Sequence[str]) -> RewardModel:
        from wmpo_ray.reward_models.frame import FrameRewardModel

        return FrameRewardModel.create(self._section(config), frame_size, instructions, config.seed)

    def load(self, config: Config, path: str) -> RewardModel:
        from wmpo_ray.reward_models.frame import FrameRewardModel

        return FrameRewardModel.load(path)

    def pretrained(self, config: Config) -> RewardModel:
        model: Any = super().pretrained(config)
        own = model.network.config
        sizes = {
            "hidden_size": own.hidden_size,
            "num_layers": own.num_hidden_layers,
            "num_heads": own.num_attention_heads,
            "mlp_ratio": own.intermediate_size / own.hidden_size,
            "patch_size": own.patch_size,
        }
        section = self._section(config)
        refuse_ignored(section.network, sizes, "reward.network", config.reward.pretrained)
        model.knows_progress |= section.progress_weight > 0 and section.steps > 0
        return model

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        source, settings = self._sizes(config, facts)

        def build(depths: Depths) -> nn.Module:
            return ViTForImageClassification(
                ViTConfig.from_dict({**settings.to_dict(), "num_hidden_layers": depths[0]})
            )

        def inputs(batch: int) -> dict[str, Tensor]:
            return {"pixel_values": torch.zeros(batch, settings.num_channels, *height_and_width(settings.image_size))}

        return Blueprint(source, (settings.num_hidden_layers,), build, inputs)

    def _sizes(self, config: Config, facts: EnvironmentFacts) -> tuple[str, ViTConfig]:
        """Where the sizes come from, and the sizes."""
        import torch
        from transformers import ViTConfig

        from wmpo_ray.reward_models.frame import FrameRewardModel

        folder = config.reward.pretrained
        if is_there(folder):
            return folder, ViTConfig.from_dict(read_json(Path(folder) / "config.json"))
        with torch.device("meta"):
            model = FrameRewardModel.create(
                self._section(config), frame_size_of(*facts.frame_shape[:2]), facts.instructions, config.seed
            )
        return "reward.network", model.network.config

    def _section(self, config: Config) -> FrameRewardConfig:
        assert isinstance(config.reward, FrameRewardConfig)
        return config.reward
