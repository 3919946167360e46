"""Settings of the stages whose episodes may come from a file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.config.models import Steps, VideoTrainingConfig
from wmpo_ray.core.section import Count, Positive, Section, Share, check_local

PLAY = "play"  # among the sources of a pretraining: the environment's own


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

    It begins with `world_model.pretrained`, and so goes on from a shipped or saved model, or with a fresh network where
    that is "".
    """

    steps: Steps = 0  # 0: the run has no such stage
    warmup_steps: Count = 100
    ema_decay: Share = 0.998
    self_context_share: Share = 0.3
    self_context_start: Share = 0.5
    # Several instead of `source`: recorded episodes, each taken whole, and "play". Episodes of other policies are the best
    # of them: what a policy does is not what play does.
    sources: tuple[str, ...] = ()
    shares: tuple[Positive, ...] = ()  # of every batch, of each of `sources`, in proportion; (): equal ones
    num_trajectories: Annotated[int, Field(ge=0, le=10**7)] = 0  # of play, or of `source`; 0: all of the file
    # Recorded episodes that choose the checkpoint and are never trained on; "": some of the others.
    held_out: str = ""
    num_held_out: Annotated[int, Field(ge=1, le=10**5)] = 128  # the first of `held_out`, else others at random
    measure_every: Count = 500  # steps, and at the end
    # What the checkpoint that is kept has most of, on the held-out episodes: agreement with what the environment or the
    # reward model sees in the real frames, or the lowest loss; "auto": agreement where there is any.
    choose_by: Literal["auto", "agreement", "loss"] = "auto"
    reward_model: str = ""  # the folder of one that judges the held-out episodes; "": none
    weights: Literal["float32", "bfloat16"] = "float32"  # of the folder

    @property
    def has_play(self) -> bool:
        """Whether some of its episodes, or all of them, are the environment's own play."""
        return PLAY in self.sources if self.sources else not self.source

    @field_validator("reward_model")
    @classmethod
    def _check_reward_model(cls, path: str) -> str:
        return check_local(path, "pretrain.reward_model")

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, path: str) -> str:
        return check_local(path, "pretrain.held_out")

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_local(path, "pretrain.sources") for path in paths)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.steps:
            return self
        self._check_mixture()
        if self.has_play and not self.num_trajectories:
            raise ValueError(
                "pretrain.num_trajectories = 0 takes all of pretrain.source, and there is none; set pretrain.source, or "
                "pretrain.num_trajectories to the episodes of play to make"
            )
        if self.num_trajectories and not self.held_out and self.num_held_out >= self.num_trajectories:
            raise ValueError(
                f"pretrain.num_held_out = {self.num_held_out} leaves none of the {self.num_trajectories} episodes of "
                "pretrain.num_trajectories to train on; lower it"
            )
        return self

    def _check_mixture(self) -> None:
        if len(self.shares) not in (0, len(self.sources)):
            raise ValueError(
                f"pretrain.shares = {list(self.shares)}: {len(self.shares)} for the {len(self.sources)} of "
                "pretrain.sources; give one for each"
            )
        if not self.sources:
            return
        if self.source:
            raise ValueError(
                f"pretrain.source = {self.source} and pretrain.sources = {list(self.sources)}: one of the two says where "
                "episodes come from; remove pretrain.source"
            )
        if "" in self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(
                f"pretrain.sources = {list(self.sources)}: each must be named, and named once; change pretrain.sources"
            )
        if not self.held_out:
            raise ValueError(
                f"pretrain.held_out is empty, and pretrain.sources = {list(self.sources)} are trained on whole; set "
                "pretrain.held_out to other episodes, such as those of another policy"
            )
