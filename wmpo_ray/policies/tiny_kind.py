"""The kind `tiny`: settings of the small policy, and how it is created, loaded and planned for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from wmpo_ray.config.models import PolicyConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.frame_sizes import check_patches, frame_size_of
from wmpo_ray.core.plan_types import Blueprint, Depths, is_there
from wmpo_ray.core.section import Count, Depth, Positive, Section, Width, check_heads, refuse_ignored
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.policies.policy_kind import PolicyKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch
    from torch import Tensor, nn

    from wmpo_ray.core.interfaces import Policy
    from wmpo_ray.core.types import Episodes


class TinyNetworkConfig(Section):
    width: Width = 96
    num_layers: Depth = 2
    num_heads: Count = 4
    patch_size: Count = 8
    num_bins: Annotated[int, Field(ge=2)] = 256
    num_bases: Annotated[int, Field(ge=0)] = 24  # smooth bumps that bin logits are built from; 0: independent bins
    mlp_ratio: Positive = 4.0

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(self.width, self.num_heads, "policy.network.width")
        return self


class TinyPolicyConfig(PolicyConfig):
    kind: Literal["tiny"] = "tiny"
    network: TinyNetworkConfig = TinyNetworkConfig()


class TinyKind(PolicyKind):
    section = TinyPolicyConfig
    libraries = ("wmpo_ray.policies.tiny",)

    def create(self, config: Config, demos: Episodes) -> Policy:
        from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of

        frame_size = frame_size_of(*demos.frames.shape[2:4])
        check_patches(frame_size, _network(config).patch_size, "policy.network.patch_size")
        return TinyPolicy(
            TinyPolicyHFConfig(
                **_network(config).model_dump(),
                frame_size=frame_size,
                chunk_length=config.rollout.chunk_length,
                action_dim=demos.actions.shape[-1],
                vocabulary=vocabulary_of(demos.instructions),
            )
        )

    def load(self, config: Config, path: str, *, training: bool, device: torch.device) -> Policy:
        from wmpo_ray.policies.tiny import TinyPolicy

        policy = TinyPolicy.load(path)
        refuse_ignored(_network(config), policy.config.to_dict(), "policy.network", path)
        return policy.to(device)

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        import torch

        from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of

        folder = config.policy.pretrained
        if is_there(folder):
            source, settings = folder, TinyPolicyHFConfig.from_dict(read_json(Path(folder) / "config.json"))
        else:
            source = "policy.network"
            settings = TinyPolicyHFConfig(
                **_network(config).model_dump(),
                frame_size=frame_size_of(*facts.frame_shape[:2]),
                chunk_length=config.rollout.chunk_length,
                action_dim=facts.action_dim,
                vocabulary=vocabulary_of(facts.instructions),
            )

        def build(depths: Depths) -> nn.Module:
            return TinyPolicy(TinyPolicyHFConfig.from_dict({**settings.to_dict(), "num_layers": depths[0]}))

        def inputs(batch: int) -> dict[str, Tensor]:
            return {
                "frames": torch.zeros(batch, *facts.frame_shape, dtype=torch.uint8),
                "word_ids": torch.zeros(batch, settings.max_words, dtype=torch.int64),
            }

        return Blueprint(source, (settings.num_layers,), build, inputs)


def _network(config: Config) -> TinyNetworkConfig:
    return cast(TinyPolicyConfig, config.policy).network
