"""What the pixels of an environment's frames mean: its views, and which changes of a scene leave its task the same.

A kind of environment says this with its facts. It decides which augmentation a training may use: a mirrored scene is an
episode of the same task only where the environment says so.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Axis = Literal["rows", "columns"]  # of a frame: from top to bottom, from left to right


class View(NamedTuple):
    """The rectangle of one camera in a frame of several, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Mirror(NamedTuple):
    """The scene in a mirror is a scene of the same task."""

    axes: tuple[Axis | None, ...]  # of each view: whose pixels change their order; None: the view stays as it is
    negated: tuple[int, ...] = ()  # action dimensions whose sign changes


class Shift(NamedTuple):
    """The scene moved by whole pixels along one direction is a scene of the same task."""

    axes: tuple[Axis | None, ...]  # of each view: along which its pixels move, to the bottom or right; None: it stays
    max_pixels: int
    action: int  # the dimension that aims along this direction
    action_per_pixel: float  # how much is added to it for each pixel


class FrameLayout(NamedTuple):
    """`views`: the rectangles that make up the frame; empty: one view, the whole frame."""

    views: tuple[View, ...] = ()
    mirror: Mirror | None = None
    shifts: tuple[Shift, ...] = ()

    @property
    def num_views(self) -> int:
        return max(1, len(self.views))

    def check(self, frame_shape: tuple[int, int, int], action_dim: int) -> None:
        """Raises ValueError for a layout that does not fit frames [H, W, 3] and actions [D]."""
        height, width, _ = frame_shape
        for view in self.views:
            inside = 0 <= view.top and 0 <= view.left and view.height > 0 and view.width > 0
            if not inside or view.top + view.height > height or view.left + view.width > width:
                raise ValueError(f"{view} is not inside a frame of {height} x {width} pixels")
        moved = [*((self.mirror,) if self.mirror else ()), *self.shifts]
        for each in moved:
            if len(each.axes) != self.num_views:
                raise ValueError(f"{each} names {len(each.axes)} axes; the frame has {self.num_views} views")
        used = [*(self.mirror.negated if self.mirror else ()), *(shift.action for shift in self.shifts)]
        if beyond := [index for index in used if not 0 <= index < action_dim]:
            raise ValueError(f"action dimension {beyond[0]}: actions have the dimensions 0 to {action_dim - 1}")
