"""What is known of small tabletop tasks without the simulator: two views of a box, and actions that name a place in it."""

from __future__ import annotations

from wmpo_ray.environments.layout import FrameLayout, Mirror, PixelWeight, Shift, Target, View

ACTION_DIM = 4  # the hand's target x, y, z in the box, and the grip: above 0 closes
SIZE = 24  # pixels of a frame's side: two views of 24 x 12
# Conditions as of `PixelWeight`: what counts as a pixel of the orange cube.
ORANGE_PIXELS = ((1.0, 0.0, -1.0, 40.0), (1.0, -1.2, 0.0, 0.0))
_FRONT, _SIDE = View(0, 0, SIZE // 2, SIZE), View(SIZE // 2, 0, SIZE // 2, SIZE)


def table_layout(*pixel_weights: PixelWeight) -> FrameLayout:
    """y to the right in the front view, x in the one from the side, and z upwards in both."""
    return FrameLayout(
        views=(_FRONT, _SIDE),
        mirror=Mirror(("columns", None), negated=(1,)),
        shifts=(Shift((None, "columns"), 3, 0, 2 / SIZE), Shift(("columns", None), 3, 1, 2 / SIZE)),
        targets=(
            Target((0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0, 0.0)),
            Target((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0, 0.0)),
        ),
        pixel_weights=pixel_weights,
    )
