"""Draws where an action aims into every view of a frame, and keeps with a world model how it was taught to see that."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor

from wmpo_ray.core.section import Count
from wmpo_ray.environments.layout import WHOLE_FRAME, FrameLayout, Target, View
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig

MAX_VIEWS = 64
Numbers = Annotated[list[FiniteFloat], Field(min_length=2, max_length=1025)]
Edge = Annotated[int, Field(ge=0)]


def coverage(centre: Tensor, size: int) -> Tensor:
    """How much of each of `size` pixels a stretch of two pixels around `centre` covers, [...] -> [..., size]."""
    pixel = torch.arange(size, device=centre.device)
    low, high = centre[..., None] - 1, centre[..., None] + 1
    return (torch.minimum(pixel + 1, high) - torch.maximum(pixel, low)).clamp(0, 1)


def draw_square(across: Tensor, down: Tensor, height: int, width: int) -> Tensor:
    """A 2x2 pixel square at places [B, K] in [-1, 1] -> [B, K, height, width]."""
    rows, columns = coverage((down + 1) / 2 * height, height), coverage((across + 1) / 2 * width, width)
    return rows[..., :, None] * columns[..., None, :]


def draw_targets(actions: Tensor, height: int, width: int, layout: FrameLayout) -> Tensor:
    """The square of each view that shows where actions [B, K, D] aim -> [B, K, height, width].

    Of latents with fewer pixels than the frame the views are smaller in proportion. Raises ValueError where that leaves
    a fraction of a pixel.
    """
    views = layout.views or (View(0, 0, height, width),)
    full = layout.size[0] if layout.views else height
    drawn = actions.new_zeros(*actions.shape[:2], height, width)
    for view, target in zip(views, layout.targets, strict=True):
        if target is None:
            continue
        if any(number * height % full for number in view):
            raise ValueError(f"{view} begins or ends between the pixels of a latent of {height} x {width}")
        top, left, rows, columns = (number * height // full for number in view)
        across, down = (_place(actions, numbers) for numbers in target)
        drawn[..., top : top + rows, left : left + columns] = draw_square(across, down, rows, columns)
    return drawn


def _place(actions: Tensor, numbers: tuple[float, ...]) -> Tensor:
    """A sum over the numbers of an action, term by term: the same bits on every processor."""
    place = torch.full_like(actions[..., 0], numbers[-1])
    for dimension, factor in enumerate(numbers[:-1]):
        if factor:
            place = place + factor * actions[..., dimension]
    return place


class _TargetSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    across: Numbers
    down: Numbers


class TargetViews(BaseModel):
    """What a world model's file says of the views and targets it was trained with."""

    model_config = ConfigDict(extra="forbid")
    views: Annotated[list[tuple[Edge, Edge, Count, Count]], Field(max_length=MAX_VIEWS)]
    targets: Annotated[list[_TargetSettings | None], Field(min_length=1, max_length=MAX_VIEWS)]

    @model_validator(mode="after")
    def _check(self) -> TargetViews:
        if len(self.targets) != max(1, len(self.views)):
            raise ValueError(f"{len(self.targets)} targets for {max(1, len(self.views))} views")
        return self

    def layout(self) -> FrameLayout:
        targets = [None if each is None else Target(tuple(each.across), tuple(each.down)) for each in self.targets]
        return FrameLayout(tuple(View(*view) for view in self.views), targets=tuple(targets))


def target_settings(layout: FrameLayout) -> dict[str, Any]:
    """`TargetViews` of a layout, as JSON's types."""
    return {"views": list(layout.views), "targets": [target and target._asdict() for target in layout.targets]}


def targets_alone(layout: FrameLayout, denoiser: DenoiserConfig) -> FrameLayout:
    """What of a layout the weights of a world model with this denoiser depend on."""
    if not (layout.targets and denoiser.action_map):
        return WHOLE_FRAME
    return FrameLayout(layout.views, targets=layout.targets)
