"""Settings that every kind of policy, world model and reward model has, each with its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.core.section import Count, NonNegative, Positive, Section, Share, check_local
from wmpo_ray.core.types import Disputed

Steps = Annotated[int, Field(ge=0, le=10**9)]  # of a training; 0: the pretrained model is taken as it is
MicroBatch = Annotated[
    int, Field(ge=0, le=10**7)
]  # samples in one forward pass, gradients add up; 0: a worker's whole share


class CloningConfig(Section):
    steps: Steps = 500
    batch_size: Annotated[int, Field(ge=1, le=10**7)] = 64
    micro_batch_size: MicroBatch = 0
    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    # How often a step that an operator made in place of the policy is drawn, for each time that another one is.
    correction_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


class PolicyConfig(Section):
    """What every kind of policy has; its own settings are in a nested table."""

    kind: str = "tiny"
    pretrained: str = ""  # the folder of a policy to begin with; "": a fresh network, where the kind has one
    cloning: CloningConfig = CloningConfig()

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """What the policy computes in; a learner's weights are float32 all the same."""
        return "float32"

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return False

    @property
    def trained_parameters(self) -> str:
        """What is trained where the user does not choose, a regular expression on parameter names; "": all."""
        return ""

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "policy.pretrained")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.pretrained or self.cloning.steps):
            raise ValueError(
                "policy.cloning.steps=0 takes a policy as it is, and there is none; set policy.pretrained, or "
                "policy.cloning.steps to 1 or more"
            )
        return self


class AugmentationConfig(Section):
    """Changed scenes among the samples of world model and reward model; "auto": as the environment allows."""

    mirror: Literal["auto", "none", "rows", "columns"] = "auto"  # rows: upside down, columns: left becomes right
    negated_actions: tuple[Annotated[int, Field(ge=0)], ...] = ()  # dimensions whose sign such a mirror changes
    shift: Literal["auto"] | Annotated[int, Field(ge=0, le=4096)] = "auto"  # pixels at most; 0: none
    pixel_weights: Literal["auto", "none"] = "auto"  # pixels that count more in a world model's loss

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.negated_actions and self.mirror not in ("rows", "columns"):
            raise ValueError(
                f'augmentation.negated_actions = {list(self.negated_actions)} belongs to augmentation.mirror = "rows" or '
                f'"columns", and it is "{self.mirror}"; change one of them'
            )
        return self


class VideoTrainingConfig(Section):
    """What every training of a world model has, on windows of episodes."""

    steps: Steps = 300
    batch_size: Annotated[int, Field(ge=1, le=10**7)] = 32
    micro_batch_size: MicroBatch = 0
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    warmup_steps: Count = 20
    decay_share: Share = 0.45  # the last part of training, over which the learning rate falls to `final_share`
    final_share: Share = 0.02
    ema_decay: Share = 0.99
    self_context_share: Share = 0.5  # share of batches whose context is the model's own previous chunk
    self_context_start: Share = 0.0  # share of the steps before the first such batch
    contact_weight: Positive = 1.0  # sampling weight of windows with contact (play) or a change of the grip (alignment)


class WorldModelTrainingConfig(VideoTrainingConfig):
    """Alignment: the training on episodes of the policy and on demonstrations."""

    demo_share: Share = 0.3  # share of expert demonstrations among the windows
    # Of the conditioning frames, in training and, where the model has any there, in imagination; None: the model's own.
    conditioning_noise: Share | None = None
    action_level: Literal["frame", "clip"] | None = None  # see DenoiserConfig.action_level; None: the model's own


class WorldModelConfig(Section):
    """What every kind of world model has."""

    kind: str = "diffusion"

    is_learned: ClassVar[bool] = True  # has weights that are aligned and saved, and can be wrong

    if TYPE_CHECKING:  # Fields of learned kinds; one without weights has constants in their place.

        @property
        def pretrained(self) -> str: ...

        @property
        def alignment(self) -> WorldModelTrainingConfig: ...


class VerifyConfig(Section):
    """An imagined success counts only if the same actions also succeed in a second world model."""

    enabled: bool = False
    disputed: Disputed = (
        "failure"  # a success that it does not confirm; "unknown": left out of its group and of the loss
    )
    # How far the second world follows: to the end of the trajectory, or to the success that it is to confirm, by when it
    # must have seen one too.
    until: Literal["horizon", "finish"] = "horizon"
    pretrained: str = "embedded-b"

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "reward.verify.pretrained")


class LabelNoiseConfig(Section):
    """Labels of rollouts made worse on purpose, to learn what wrong ones cost. Drawn anew for each trajectory."""

    false_positives: Share = 0.0  # share of the failures that are called successes
    false_negatives: Share = 0.0  # share of the successes that are called failures

    @property
    def is_on(self) -> bool:
        return bool(self.false_positives or self.false_negatives)


class RewardConfig(Section):
    """What every kind of reward model has."""

    kind: str = "videomae"
    pretrained: str = ""  # the folder of a reward model to begin with; "": a fresh network, where the kind has one
    threshold: Share = 0.0  # probability of a success; 0: the best one on validation, or a pretrained model's own
    # Of the failures at most this share may be called a success, with 95% confidence on those of validation; 0: the
    # threshold is the best one whatever it lets through.
    max_false_positive_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_length: Annotated[int, Field(ge=2)] = 4  # L
    min_steps: Annotated[int, Field(ge=0)] = 0  # windows that end before are not judged
    steps: Steps = 800
    batch_size: Annotated[int, Field(ge=4, le=10**7)] = 64
    micro_batch_size: MicroBatch = 0
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.05
    pixel_noise: NonNegative = 4.0  # of 255, augmentation
    success_margin: Count = 2  # clips of a success that end this close to its end are no negatives
    swapped_share: Share = 0.1  # share of negatives that are terminal clips with another instruction
    # "with_imagination": beside each world model, where a trajectory ends at its success; "own": in workers of its own,
    # which see whole trajectories. Both lead to the same weights.
    placement: Literal["own", "with_imagination"] = "own"
    verify: VerifyConfig = VerifyConfig()
    label_noise: LabelNoiseConfig = LabelNoiseConfig()

    @field_validator("pretrained")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_local(path, "reward.pretrained")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.pretrained or self.steps):
            raise ValueError(
                "reward.steps=0 takes a reward model as it is, and there is none; set reward.pretrained, or "
                "reward.steps to 1 or more"
            )
        if self.threshold and self.max_false_positive_rate:
            raise ValueError(
                f"reward.threshold={self.threshold:g} is taken as it is, so reward.max_false_positive_rate="
                f"{self.max_false_positive_rate:g} cannot be kept; set one of them to 0"
            )
        return self
