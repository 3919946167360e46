"""One clip in a notebook: it plays, with its instruction and its verdict. Needs no style sheet and loads nothing."""

from __future__ import annotations

import base64
from typing import NamedTuple

import numpy as np

from wmpo_ray.report.formats import percent
from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.video_sections import TARGET_PIXELS, encode, enlarge, with_progress

GOOD, BAD, QUIET = "#00806a", "#c0452a", "#76828f"  # readable on light and on dark notebooks
CURVE_HEIGHT = 30


class ClipView(NamedTuple):
    """What is shown of a clip."""

    frames: np.ndarray  # [n, H, W, 3] uint8, up to the end that was decided on
    instruction: str
    origin: str  # which policy acted in which world
    success: bool | None  # None: not judged
    verdict: str  # what is said of it besides
    windows: np.ndarray | None = None  # [W] probability of each window that ends within the frames


def clip_webp(frames: np.ndarray) -> bytes:
    """Animated WebP of frames [n, H, W, 3] uint8, enlarged, with a strip of progress below."""
    # Flat blocks of enlarged pixels are smaller and sharper without loss; camera pictures are not.
    return encode(with_progress(enlarge(frames)), lossless=frames.shape[1] < TARGET_PIXELS)


def clip_html(clip: ClipView) -> Markup:
    """The figure; texts are escaped."""
    source = "data:image/webp;base64," + base64.b64encode(clip_webp(clip.frames)).decode("ascii")
    width = enlarge(clip.frames[:1]).shape[2]
    pixelated = "image-rendering:pixelated;" if clip.frames.shape[1] < TARGET_PIXELS else ""
    style = f"display:block;max-width:100%;border-radius:5px;{pixelated}"
    picture = tag("img", src=source, alt=clip.instruction, width=width, style=style)
    caption = tag(
        "figcaption",
        tag("div", clip.instruction, style="font-weight:600"),
        tag("div", _outcome(clip.success), clip.verdict),
        tag("div", clip.origin, style=f"color:{QUIET}"),
        style="margin-top:6px;max-width:24em;font:13px/1.45 system-ui,sans-serif",
    )
    return tag("figure", picture, _curve(clip, width), caption, style="display:inline-block;margin:4px 12px 8px 0")


def _outcome(success: bool | None) -> Markup | None:
    if success is None:
        return None
    return tag("b", "success" if success else "failure", style=f"color:{GOOD if success else BAD}")


def _curve(clip: ClipView, width: int) -> Markup | None:
    """The probability of each window, from 0 below to 1 above, under the frame that it ends with."""
    windows = clip.windows
    if windows is None or len(windows) < 2:
        return None
    ends = np.arange(len(clip.frames) - len(windows), len(clip.frames))
    xs = width * ends / ends[-1]
    ys = 1 + (CURVE_HEIGHT - 2) * (1 - np.clip(windows, 0, 1))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    note = tag("title", f"success probability of each window: at most {percent(float(windows.max()))}")
    line = tag("polyline", points=points, style=f"fill:none;stroke:{QUIET};stroke-width:1.5")
    style = f"display:block;max-width:100%;margin-top:4px;border-bottom:1px solid {QUIET}"
    box = f"0 0 {width} {CURVE_HEIGHT}"
    return tag("svg", note, line, viewBox=box, width=width, height=CURVE_HEIGHT, role="img", style=style)
