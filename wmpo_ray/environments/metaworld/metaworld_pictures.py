"""Pictures of Meta-World's scenes.

Software rendering of the arm's meshes costs 17 ms a picture with MuJoCo's smoothing of edges, of 64 or of 240 pixels, and
5 ms without. So pictures are drawn larger than frames, without smoothing, and reduced by area.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo_ray.environments.simulators.canvas import Canvas, fixed_camera

MIN_PIXELS, MIN_SAMPLES = 128, 2  # of a picture, and of it along each side of a pixel of the frame


def picture_size(image_size: int) -> int:
    """Height and width of the picture that a frame of `image_size` is reduced from: a multiple of it."""
    return image_size * max(MIN_SAMPLES, -(-MIN_PIXELS // image_size))


class ScenePainter(Canvas):
    """Draws the scenes of one model from one camera."""

    def __init__(self, model: Any, camera: str, size: int):
        model.vis.quality.offsamples = 0
        self._camera = fixed_camera(model.camera(camera).id)
        super().__init__(model, size, size)

    def paint(self, data: Any) -> np.ndarray:
        """[size, size, 3] uint8, upright."""
        picture = self.draw(data, self._camera)
        up = data.cam_xmat[self._camera.fixedcamid].reshape(3, 3)[2, 1]
        # Meta-World's corner cameras hang upside down: what they see is turned by half a turn.
        return np.ascontiguousarray(picture[::-1, ::-1]) if up < -0.5 else picture
