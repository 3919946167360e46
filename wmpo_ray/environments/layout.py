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


class Target(NamedTuple):
    """Where the target of an absolute action lies in a view: two sums over its D numbers, with a constant at the end.

    Each is -1 at the left or upper edge of the view and 1 at the right or lower one. With actions (x, y, z, grip), a front
    view that shows y to the right and z upwards has across (0, 1, 0, 0, 0) and down (0, 0, -1, 0, 0).
    """

    across: tuple[float, ...]
    down: tuple[float, ...]


class PixelWeight(NamedTuple):
    """Pixels that count more in a world model's loss: a small object, whose place decides the outcome, is few of them.

    `colour`: conditions (r, g, b, least), all of which r * red + g * green + b * blue > least must meet, of 0 to 255; orange
    is ((1, 0, -1, 40), (1, -1.2, 0, 0)). A pixel counts if it has the colour in the frame to come or in the last one.
    """

    colour: tuple[tuple[float, float, float, float], ...]
    weight: float  # added to the weight of such a pixel, which is 1 without
    changed_weight: float = 0.0  # added where it also differs between the two frames


class FrameLayout(NamedTuple):
    """`views`: the rectangles that make up the frame; empty: one view, the whole frame.

    targets: where an action aims in each view, None: nowhere; empty: its first two numbers are the place in the frame, for
    world models that draw it (`world_model.denoiser.action_map`).
    """

    views: tuple[View, ...] = ()
    mirror: Mirror | None = None
    shifts: tuple[Shift, ...] = ()
    targets: tuple[Target | None, ...] = ()
    pixel_weights: tuple[PixelWeight, ...] = ()

    @property
    def num_views(self) -> int:
        return max(1, len(self.views))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame that the views make up."""
        return max(v.top + v.height for v in self.views), max(v.left + v.width for v in self.views)

    def check(self, frame_shape: tuple[int, int, int], action_dim: int) -> None:
        """Raises ValueError for a layout that does not fit frames [H, W, 3] and actions [D]."""
        height, width, _ = frame_shape
        for view in self.views:
            inside = 0 <= view.top and 0 <= view.left and view.height > 0 and view.width > 0
            if not inside or view.top + view.height > height or view.left + view.width > width:
                raise ValueError(f"{view} is not inside a frame of {height} x {width} pixels")
        if self.views and self.size != (height, width):
            raise ValueError(
                f"the views end at {self.size[0]} x {self.size[1]} pixels, the frame at {height} x {width}"
            )
        if self.targets and len(self.targets) != self.num_views:
            raise ValueError(f"{len(self.targets)} targets are named; the frame has {self.num_views} views")
        for target in self.targets:
            if target is not None and {len(target.across), len(target.down)} != {action_dim + 1}:
                raise ValueError(f"{target} needs {action_dim + 1} numbers for actions of {action_dim} dimensions")
        moved = [*((self.mirror,) if self.mirror else ()), *self.shifts]
        for each in moved:
            if len(each.axes) != self.num_views:
                raise ValueError(f"{each} names {len(each.axes)} axes; the frame has {self.num_views} views")
        used = [*(self.mirror.negated if self.mirror else ()), *(shift.action for shift in self.shifts)]
        if beyond := [index for index in used if not 0 <= index < action_dim]:
            raise ValueError(f"action dimension {beyond[0]}: actions have the dimensions 0 to {action_dim - 1}")


WHOLE_FRAME = FrameLayout()  # one view, of which nothing is known
