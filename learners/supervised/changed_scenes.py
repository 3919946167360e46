"""Mirrors and shifts training samples as the environment allows: views of the frames, and the actions with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learners.supervised.loop import WorkerShare
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.layout import WHOLE_FRAME, Axis, FrameLayout, View

NO_AUGMENTATION = WHOLE_FRAME


class Moves(NamedTuple):
    """What is done to each of n samples."""

    mirrored: Tensor | None  # [n] bool
    pixels: tuple[Tensor, ...]  # [n] int64 for each shift of the layout


class Augmentation:
    """`layout`: with the mirror and the shifts to use."""

    def __init__(self, layout: FrameLayout = NO_AUGMENTATION):
        self.layout = layout

    def for_latents(self, scale: int) -> Augmentation:
        """The same for latents of which one covers `scale` x `scale` pixels: a shift by one pixel is none of theirs.

        Raises ConfigError where the views have no edges there.
        """
        if scale == 1:
            return self
        if uneven := [view for view in self.layout.views if any(number % scale for number in view)]:
            raise ConfigError(
                f"the views of the environment's frames begin and end between the codec's blocks of {scale} x {scale} pixels "
                f'({uneven[0]}); set world_model.codec to "pixel", or change the views'
            )
        views = tuple(View(*(number // scale for number in view)) for view in self.layout.views)
        return Augmentation(self.layout._replace(views=views, shifts=()))

    def draw(self, num_all: int, share: WorkerShare, generator: torch.Generator) -> Moves:
        """This rank's share of the moves for all samples. What is not used draws nothing."""
        own = share.of(num_all)
        mirrored = torch.rand(num_all, generator=generator)[own] < 0.5 if self.layout.mirror else None
        farthest = [shift.max_pixels for shift in self.layout.shifts]
        return Moves(
            mirrored,
            tuple(torch.randint(-most, most + 1, (num_all,), generator=generator)[own] for most in farthest),
        )

    def frames(self, frames: Tensor, moves: Moves, rows: int) -> Tensor:
        """Frames [n, ...] with the height at dimension `rows` and the width after it; shifted edges are repeated."""
        if not self.layout.views:
            return self._view(frames, moves, rows, 0)
        out = frames.clone()
        for index, view in enumerate(self.layout.views):
            part = out.narrow(rows, view.top, view.height).narrow(rows + 1, view.left, view.width)
            part.copy_(self._view(part.clone(), moves, rows, index))
        return out

    def actions(self, actions: Tensor, moves: Moves) -> Tensor:
        """Actions [n, K, D] of the changed scenes."""
        if moves.mirrored is not None and self.layout.mirror is not None:
            sign = torch.ones(actions.shape[-1], device=actions.device)
            sign[list(self.layout.mirror.negated)] = -1.0
            actions = torch.where(moves.mirrored.to(actions.device).view(-1, 1, 1), actions * sign, actions)
        for shift, pixels in zip(self.layout.shifts, moves.pixels, strict=True):
            step = torch.zeros(actions.shape[-1], device=actions.device)
            step[shift.action] = shift.action_per_pixel
            actions = actions + pixels.to(actions.device).view(-1, 1, 1) * step
        return actions

    def _view(self, frames: Tensor, moves: Moves, rows: int, index: int) -> Tensor:
        """One view mirrored, then shifted."""
        mirror = self.layout.mirror
        if moves.mirrored is not None and mirror is not None and mirror.axes[index] is not None:
            mirrored = moves.mirrored.to(frames.device).view(-1, *[1] * (frames.dim() - 1))
            frames = torch.where(mirrored, frames.flip(_dimension(mirror.axes[index], rows)), frames)
        for shift, pixels in zip(self.layout.shifts, moves.pixels, strict=True):
            if shift.axes[index] is not None:
                frames = _shifted(frames, pixels.to(frames.device), _dimension(shift.axes[index], rows))
        return frames


def _dimension(axis: Axis | None, rows: int) -> int:
    return rows if axis == "rows" else rows + 1


def _shifted(frames: Tensor, pixels: Tensor, dimension: int) -> Tensor:
    """Frames [n, ...], each moved along a dimension by its number of pixels [n]; the last pixel is repeated."""
    size = frames.shape[dimension]
    index = (torch.arange(size, device=frames.device) - pixels[:, None]).clamp(0, size - 1)
    shape = [1] * frames.dim()
    shape[0], shape[dimension] = len(frames), size
    return frames.gather(dimension, index.view(shape).expand(frames.shape))
