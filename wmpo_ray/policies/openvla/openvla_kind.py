"""The kind `openvla_oft`: what a user chooses of a published OpenVLA-OFT, and how it is loaded and planned for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from wmpo_ray.config.models import PolicyConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.plan_types import ASSUMED, Blueprint, Depths, is_there
from wmpo_ray.core.section import Count, Section
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.environments.facts import EnvironmentFacts, environment_facts
from wmpo_ray.policies.policy_kind import PolicyKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch
    from torch import Tensor, nn

    from wmpo_ray.core.interfaces import Policy
    from wmpo_ray.core.types import Episodes
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

PROMPT_LENGTH = 32  # tokens of "In: What action should the robot take to ...?\nOut:" with a dozen words of instruction


class OpenVLAOptions(Section):
    """The sizes are those of the folder."""

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


class OpenVLAPolicyConfig(PolicyConfig):
    kind: Literal["openvla_oft"] = "openvla_oft"
    openvla: OpenVLAOptions = OpenVLAOptions()

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        return self.openvla.compute_dtype

    @property
    def gradient_checkpointing(self) -> bool:
        return self.openvla.gradient_checkpointing

    @property
    def trained_parameters(self) -> str:
        return "lora_" if self.openvla.lora_rank else ""

    @model_validator(mode="after")
    def _check_pretrained(self) -> Self:
        if not self.pretrained:
            raise ValueError(
                'policy.pretrained = "": policy.kind = "openvla_oft" has no fresh network; set policy.pretrained to the '
                "folder of one"
            )
        return self


class OpenVLAKind(PolicyKind):
    section = OpenVLAPolicyConfig
    libraries: ClassVar[tuple[str, ...]] = ("wmpo_ray.policies.openvla.oft", "wmpo_ray.policies.openvla.lora")

    def create(self, config: Config, demos: Episodes) -> Policy:
        raise ConfigError('policy.kind="openvla_oft" has no fresh network; set policy.pretrained to the folder of one')

    def load(self, config: Config, path: str, *, training: bool, device: torch.device) -> Policy:
        """In training activations are checkpointed where the config says so; otherwise a policy that computes in bfloat16
        holds its weights in `weights.dtype`, as they arrive."""
        import torch

        from wmpo_ray.policies.openvla.lora import add_lora

        options = _options(config)
        rounded = not training and "bfloat16" == options.compute_dtype == config.weights.dtype
        policy = _load(config, path, torch.bfloat16 if rounded else torch.float32, device)
        if options.lora_rank:
            add_lora(policy, options.lora_rank, options.lora_alpha, dropout=options.lora_dropout, seed=config.seed)
        if training and options.gradient_checkpointing:
            policy.activation_checkpointing_enable({"use_reentrant": False})
        return policy

    def pretrained(self, config: Config) -> Policy:
        import torch

        return _load(config, config.policy.pretrained, None, torch.device("cpu"))

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        import torch

        from wmpo_ray.policies.openvla.lora import add_lora
        from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
        from wmpo_ray.policies.openvla.settings import OpenVLAConfig, build_config

        choice, folder = _options(config), config.policy.pretrained
        known = read_json(Path(folder) / "config.json") if is_there(folder) else {}
        changes = {"num_actions_chunk": config.rollout.chunk_length, "action_dim": facts.action_dim}
        settings = build_config({"text_config": {}, **known, "compute_dtype": "float32"}, changes).to_dict()
        sizes = OpenVLAConfig(**settings)
        depths = (sizes.towers[0].depth, sizes.towers[1].depth, sizes.text_config.num_hidden_layers)

        def build(depths: Depths) -> nn.Module:
            towers = {
                name: {**settings["timm_overrides"].get(name, {}), "depth": depth}
                for name, depth in zip(("featurizer", "fused_featurizer"), depths, strict=False)
            }
            text = {**settings["text_config"], "num_hidden_layers": depths[2]}
            policy = OpenVLAOFTPolicy(OpenVLAConfig(**{**settings, "text_config": text, "timm_overrides": towers}))
            if choice.lora_rank:
                add_lora(policy, choice.lora_rank, choice.lora_alpha)
            return policy

        def inputs(batch: int) -> dict[str, Tensor]:
            return {
                "input_ids": torch.ones(batch, PROMPT_LENGTH, dtype=torch.int64),
                "pixel_values": torch.zeros(batch, 6, *sizes.image_sizes),
            }

        return Blueprint(folder if known else ASSUMED, depths, build, inputs)

    def problems(self, config: Config, device: torch.device) -> Iterator[str]:
        rank = _options(config).lora_rank
        if rank and find_spec("peft") is None:
            yield (
                f"policy.openvla.lora_rank={rank} needs the package peft, which is not installed: pip install "
                "'wmpo-ray[lora]', or set policy.openvla.lora_rank to 0"
            )


def _options(config: Config) -> OpenVLAOptions:
    return cast(OpenVLAPolicyConfig, config.policy).openvla


def _load(config: Config, path: str, dtype: torch.dtype | None, device: torch.device) -> OpenVLAOFTPolicy:
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

    options = _options(config)
    changes: dict[str, Any] = {
        "num_actions_chunk": config.rollout.chunk_length,
        "action_dim": environment_facts(config.environment).action_dim,
        "image_steps": options.image_steps,
        "compute_dtype": options.compute_dtype,
    }
    if options.unnorm_key:
        changes["unnorm_key"] = options.unnorm_key
    policy = OpenVLAOFTPolicy.load(path, dtype, device, **changes).eval()
    if options.unnorm_key:
        _ = policy.statistics  # raises where the folder has none of this name
    return policy
