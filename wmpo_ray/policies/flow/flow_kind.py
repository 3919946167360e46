"""The kind `flow`: settings of the small flow-matching policy, and how it is created, loaded and planned for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

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
    from wmpo_ray.policies.flow.flow_policy import FlowPolicyHFConfig

DenoisingSteps = Annotated[int, Field(ge=1, le=1000)]


class FlowNetworkConfig(Section):
    width: Width = 96
    num_layers: Depth = 2
    num_heads: Count = 4
    patch_size: Count = 8
    mlp_ratio: Positive = 4.0
    time_bands: Annotated[int, Field(ge=1, le=64)] = 6  # frequencies that the time of a noisy chunk is given in

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(self.width, self.num_heads, "policy.network.width")
        return self


class FlowConfig(Section):
    """How a chunk is sampled, and what cloning draws; the formulas are in policies/flow/denoising.py."""

    ode_steps: DenoisingSteps = 10  # at temperature 0
    sde_steps: DenoisingSteps = 4  # at any other: of rollouts, which are trained on
    noise: Positive = 0.7  # a of the SDE's noise; the temperature multiplies it
    cloning_draws: Annotated[int, Field(ge=1, le=1000)] = 4  # noisy versions of each chunk in the cloning loss

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sde_steps > self.ode_steps:
            raise ValueError(
                f"sde_steps={self.sde_steps} is more than ode_steps={self.ode_steps}: rollouts that are trained on take "
                "fewer steps than use does, or as many; set policy.flow.sde_steps"
            )
        return self


class FlowPolicyConfig(PolicyConfig):
    kind: Literal["flow"] = "flow"
    network: FlowNetworkConfig = FlowNetworkConfig()
    flow: FlowConfig = FlowConfig()


class FlowKind(PolicyKind):
    section = FlowPolicyConfig
    libraries = ("wmpo_ray.policies.flow.flow_policy",)

    def create(self, config: Config, demos: Episodes) -> Policy:
        from wmpo_ray.policies.flow.flow_policy import FlowPolicy

        frame_size = frame_size_of(*demos.frames.shape[2:4])
        check_patches(frame_size, _section(config).network.patch_size, "policy.network.patch_size")
        sizes = _settings(config, frame_size, demos.actions.shape[-1], demos.instructions)
        return _with_denoising(config, FlowPolicy(sizes))

    def load(self, config: Config, path: str, *, training: bool, device: torch.device) -> Policy:
        from wmpo_ray.policies.flow.flow_policy import FlowPolicy

        policy = FlowPolicy.load(path)
        refuse_ignored(_section(config).network, policy.config.to_dict(), "policy.network", path)
        return _with_denoising(config, policy.to(device))

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        import torch

        from wmpo_ray.policies.flow.flow_policy import FlowPolicy, FlowPolicyHFConfig

        folder, num_steps = config.policy.pretrained, _section(config).flow.sde_steps
        if is_there(folder):
            source, settings = folder, FlowPolicyHFConfig.from_dict(read_json(Path(folder) / "config.json"))
        else:
            source = "policy.network"
            settings = _settings(config, frame_size_of(*facts.frame_shape[:2]), facts.action_dim, facts.instructions)

        def build(depths: Depths) -> nn.Module:
            return FlowPolicy(FlowPolicyHFConfig.from_dict({**settings.to_dict(), "num_layers": depths[0]}))

        def inputs(batch: int) -> dict[str, Tensor]:
            return {
                "states": torch.zeros(batch, num_steps, settings.chunk_length, settings.action_dim),
                "times": torch.zeros(num_steps),
                "frames": torch.zeros(batch, *facts.frame_shape, dtype=torch.uint8),
                "word_ids": torch.zeros(batch, settings.max_words, dtype=torch.int64),
            }

        # A path has one state more than steps, each of these a log-probability for every value; all are float32.
        values = settings.chunk_length * settings.action_dim
        return Blueprint(source, (settings.num_layers,), build, inputs, values * 4 * (2 * num_steps + 1))


def _section(config: Config) -> FlowPolicyConfig:
    return cast(FlowPolicyConfig, config.policy)


def _settings(config: Config, frame_size: Any, action_dim: int, instructions: Any) -> FlowPolicyHFConfig:
    from wmpo_ray.policies.flow.flow_policy import FlowPolicyHFConfig
    from wmpo_ray.policies.small_policy import vocabulary_of

    return FlowPolicyHFConfig(
        **_section(config).network.model_dump(),
        frame_size=frame_size,
        chunk_length=config.rollout.chunk_length,
        action_dim=action_dim,
        vocabulary=vocabulary_of(instructions),
    )


def _with_denoising(config: Config, policy: Any) -> Policy:
    from wmpo_ray.policies.flow.flow_policy import Denoising

    policy.denoising = Denoising(**_section(config).flow.model_dump())
    return policy
