"""Settings of the stages whose episodes may come from a file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.config.models import Steps, VideoTrainingConfig
from wmpo_ray.core.section import Count, Section, Share, check_local


class RecordedSection(Section):
    """A section whose episodes may come from a file instead."""

    source: str = ""  # recorded episodes, in any format that `wmpo data import` reads; "": none
    source_image_key: str = ""  # the camera, where the file has several; "": its only or usual one
    source_instruction: str = ""  # of every episode; "": as the file has it

    @field_validator("source")
    @classmethod
    def _check_source(cls, path: str) -> str:
        return check_local(path, f"{cls.__name__.removesuffix('Config').lower()}.source")


class PretrainConfig(VideoTrainingConfig, RecordedSection):
    """The world model's training before its alignment, on `source` or else on the environment's own play.

    It begins with `world_model.pretrained`, or with a fresh network where that is "".
    """

    steps: Steps = 0  # 0: the run has no such stage
    warmup_steps: Count = 100
    ema_decay: Share = 0.998
    self_context_share: Share = 0.3
    self_context_start: Share = 0.5
    num_trajectories: Annotated[int, Field(ge=0, le=10**7)] = 0  # of play, or of the file; 0: all of the file
    num_held_out: Annotated[int, Field(ge=1, le=10**5)] = 128  # of them, chosen at random: never trained on
    measure_every: Count = 500  # steps, and at the end
    # What the checkpoint that is kept has most of, on the held-out episodes: agreement with what the environment or the
    # reward model sees in the real frames, or the lowest loss; "auto": agreement where there is any.
    choose_by: Literal["auto", "agreement", "loss"] = "auto"
    reward_model: str = ""  # the folder of one that judges the held-out episodes; "": none
    weights: Literal["float32", "bfloat16"] = "float32"  # of the folder

    @field_validator("reward_model")
    @classmethod
    def _check_reward_model(cls, path: str) -> str:
        return check_local(path, "pretrain.reward_model")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.steps:
            return self
        if not (self.source or self.num_trajectories):
            raise ValueError(
                "pretrain.num_trajectories = 0 takes all of pretrain.source, and there is none; set pretrain.source, or "
                "pretrain.num_trajectories to the episodes of play to make"
            )
        if self.num_trajectories and self.num_held_out >= self.num_trajectories:
            raise ValueError(
                f"pretrain.num_held_out = {self.num_held_out} leaves none of the {self.num_trajectories} episodes of "
                "pretrain.num_trajectories to train on; lower it"
            )
        return self
