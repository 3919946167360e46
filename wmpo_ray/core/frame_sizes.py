"""The size of frames in settings of networks: one number where they are square, as it always was, else two."""

from __future__ import annotations

from collections.abc import Sequence

from wmpo_ray.core.errors import ConfigError

FrameSize = int | Sequence[int]  # pixels of a side, or height and width


def frame_size_of(height: int, width: int) -> FrameSize:
    return height if height == width else (height, width)


def height_and_width(size: FrameSize) -> tuple[int, int]:
    """Raises ValueError for anything but one or two numbers."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def check_patches(size: FrameSize, patch_size: int, key: str) -> None:
    """Raises ConfigError for frames that cannot be cut into whole patches; `key` is the setting of the patch size."""
    height, width = height_and_width(size)
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"{key} = {patch_size}: frames of {height} x {width} pixels cannot be cut into whole patches of that size; set "
            f"{key} to a divisor of both"
        )
