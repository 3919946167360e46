"""The kinds `smolvla` and `pi0`: what a user chooses of a folder of lerobot's, and how it is loaded and planned for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from pydantic import field_validator, model_validator

from wmpo_ray.config.models import PolicyConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.plan_types import Blueprint, Depths, is_there
from wmpo_ray.core.section import Section, check_local
from wmpo_ray.environments.facts import EnvironmentFacts, environment_facts
from wmpo_ray.policies.flow.flow_kind import FlowConfig
from wmpo_ray.policies.policy_kind import PolicyKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch
    from torch import Tensor, nn

    from wmpo_ray.core.interfaces import Policy
    from wmpo_ray.core.types import Episodes
    from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy, Use


class VLAOptions(Section):
    """The sizes are those of the folder."""

    # The folder of the model that the policy was built on, for its tokenizer.json and, of SmolVLA, its config.json; ""
    # where policy.pretrained has them in vlm/, as every saved policy does.
    vlm: str = ""
    # Of the environment, one for each image of config.json in its order: "main", its own name, or "" for none. (): the
    # main one for the first image, the only one that a world model imagines.
    cameras: tuple[str, ...] = ()
    observes_state: bool = False  # a world model imagines none; false: the mean of the statistics
    train: Literal["expert", "all"] = "expert"  # "expert": what denoises; the model that reads stays as it is

    @field_validator("vlm")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "policy.vla.vlm")


class PublishedFlowConfig(PolicyConfig):
    vla: VLAOptions = VLAOptions()
    flow: FlowConfig = FlowConfig()

    expert: ClassVar[str]  # names of the parameters that denoise, a regular expression

    @property
    def trained_parameters(self) -> str:
        return self.expert if self.vla.train == "expert" else ""

    @model_validator(mode="after")
    def _check_pretrained(self) -> Self:
        if not self.pretrained:
            raise ValueError(
                f'policy.pretrained = "": policy.kind = "{self.kind}" has no fresh network; set policy.pretrained to the '
                "folder of one"
            )
        return self


class SmolVLAPolicyConfig(PublishedFlowConfig):
    kind: Literal["smolvla"] = "smolvla"
    expert: ClassVar[str] = r"lm_expert|action_(in|out)_proj|action_time_mlp"


class PiPolicyConfig(PublishedFlowConfig):
    kind: Literal["pi0"] = "pi0"
    expert: ClassVar[str] = r"gemma_expert|action_(in|out)_proj|state_proj|time_mlp"


class PublishedFlowKind(PolicyKind):
    section: ClassVar[type[PolicyConfig]] = PublishedFlowConfig
    libraries = ("wmpo_ray.policies.flow.published_policy",)
    types: ClassVar[tuple[str, ...]]  # of config.json

    def create(self, config: Config, demos: Episodes) -> Policy:
        raise ConfigError(
            f'policy.kind="{config.policy.kind}" has no fresh network; set policy.pretrained to the folder of one'
        )

    def load(self, config: Config, path: str, *, training: bool, device: torch.device) -> Policy:
        import re

        policy = self._load(config, path, device)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(re.search(config.policy.trained_parameters, name) is not None)
        return policy

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        """Raises ConfigError where the folder is not there: nothing else says how large its model is."""
        import torch

        from wmpo_ray.policies.flow.published import read_folder
        from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy
        from wmpo_ray.policies.flow.vla_weights import network_of

        section = _section(config)
        if not is_there(section.pretrained):
            raise ConfigError(
                f"policy.pretrained = {section.pretrained!r} is not there, and a plan reads the sizes of a "
                f"{config.policy.kind} from its folder"
            )
        path = Path(section.pretrained)
        folder = read_folder(path, section.vla.vlm)
        _, network = network_of(path, folder)
        settings, num_steps = folder.settings, section.flow.sde_steps
        num_images = max(1, sum(map(bool, section.vla.cameras)))
        width, height = settings.image_resolution[::-1]
        if settings.type == "smolvla":
            width, height = settings.resize_imgs_with_padding or facts.frame_shape[1::-1]

        def build(depths: Depths) -> nn.Module:
            """Always whole: its stacks are not of one kind of layer, and without values it takes no memory."""
            return PublishedFlowPolicy(network(), folder, _use(config))

        def inputs(batch: int) -> dict[str, Tensor]:
            return {
                "states": torch.zeros(batch, num_steps, settings.chunk_size, settings.max_action_dim),
                "times": torch.zeros(num_steps),
                "images": torch.zeros(batch, num_images, 3, height, width),
                "words": torch.zeros(batch, settings.tokenizer_max_length, dtype=torch.int64),
                "word_mask": torch.ones(batch, settings.tokenizer_max_length, dtype=torch.bool),
                "state": torch.zeros(batch, settings.max_state_dim),
            }

        record = settings.chunk_size * settings.max_action_dim * 4 * (num_steps + 1)
        logprobs = config.rollout.chunk_length * settings.action_dim * 4 * num_steps
        return Blueprint(section.pretrained, (1,), build, inputs, record + logprobs)

    def _load(self, config: Config, path: str, device: torch.device) -> PublishedFlowPolicy:
        from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy

        policy = PublishedFlowPolicy.load(path, _use(config), _section(config).vla.vlm, device)
        found = policy.folder.settings.type
        if found not in self.types:
            raise ConfigError(
                f"{path} is a policy of type {found!r}, policy.kind = {config.policy.kind!r} reads {list(self.types)}; change "
                "policy.kind or policy.pretrained"
            )
        wanted = environment_facts(config.environment).action_dim
        if policy.action_dim != wanted:
            raise ConfigError(
                f"{Path(path) / 'config.json'}: actions of {policy.action_dim} dimensions, environment.kind = "
                f"{config.environment.kind!r} takes {wanted}; name another policy.pretrained"
            )
        return policy


class SmolVLAKind(PublishedFlowKind):
    section = SmolVLAPolicyConfig
    types = ("smolvla",)


class PiKind(PublishedFlowKind):
    """pi0 and pi0.5: config.json says which."""

    section = PiPolicyConfig
    types = ("pi0", "pi05")


def _section(config: Config) -> PublishedFlowConfig:
    return cast(PublishedFlowConfig, config.policy)


def _use(config: Config) -> Use:
    from wmpo_ray.policies.flow.denoising import Denoising
    from wmpo_ray.policies.flow.published_policy import Use

    section = _section(config)
    return Use(
        config.rollout.chunk_length,
        section.vla.cameras,
        section.vla.observes_state,
        Denoising(**section.flow.model_dump()),
    )
