"""The section of the configuration for vision-language models as judges."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.config.models import RewardConfig
from wmpo_ray.core.section import Count, shown

INSTRUCTION = "{instruction}"
PROMPT = (
    "The pictures show a robot, in the order of time. Its task: {instruction}. Has the robot finished the task in the "
    "last picture? Answer yes or no."
)
Words = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(min_length=1, max_length=32)]


class VlmRewardConfig(RewardConfig):
    kind: Literal["vlm"] = "vlm"
    steps: Annotated[int, Field(ge=0, le=10**9)] = 0  # it is not trained
    clip_length: Annotated[int, Field(ge=1)] = 4  # L
    num_frames: Count = 2  # of a window that it is shown, at equal distances up to the last one
    prompt: Annotated[str, Field(max_length=2**14)] = PROMPT
    yes: Words = ("yes", "Yes", "YES")
    no: Words = ("no", "No", "NO")
    windows_per_batch: Annotated[int, Field(ge=1, le=4096)] = 8
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    # Training clips on which the probability is scaled, half of them successes; 0: it is taken as the model says it.
    calibration_clips: Annotated[int, Field(ge=0, le=10**6)] = 256

    @model_validator(mode="after")
    def _check_asked(self) -> Self:
        if not self.pretrained:
            raise ValueError(
                'reward.pretrained = "": reward.kind = "vlm" has no fresh network; set reward.pretrained to the folder of a '
                "vision-language model"
            )
        if self.steps:
            raise ValueError(
                f'reward.steps={self.steps}: reward.kind = "vlm" is asked, not trained; set reward.steps to 0'
            )
        if self.num_frames > self.clip_length:
            raise ValueError(
                f"reward.num_frames={self.num_frames} is more than the {self.clip_length} frames of a window; lower it, or "
                "raise reward.clip_length"
            )
        if INSTRUCTION not in self.prompt:
            raise ValueError(
                f"reward.prompt = {shown(self.prompt)} has no {INSTRUCTION}: the task would not be asked for"
            )
        return self
