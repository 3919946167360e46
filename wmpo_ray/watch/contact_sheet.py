"""Episodes of a file as one picture: a row of frames for each, or all of them playing side by side."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from wmpo_ray.core.types import Episodes
from wmpo_ray.report.video_sections import encode, enlarge, with_progress

FRAME_PIXELS = 96  # height of a frame
GAP_PIXELS, CAPTION_PIXELS = 6, 16
GROUND, INK = (250, 250, 248), (40, 44, 52)
SUCCESS, FAILURE = (30, 120, 60), (176, 52, 44)


def chosen_rows(num_episodes: int, count: int) -> np.ndarray:
    """At most `count` rows, spread evenly over the file, the first and the last among them."""
    return np.unique(np.linspace(0, num_episodes - 1, min(count, num_episodes)).round().astype(np.int64))


def contact_sheet(episodes: Episodes, rows: np.ndarray, num_frames: int = 8) -> bytes:
    """PNG: for each of these episodes a caption and `num_frames` frames, from its first to its last one."""
    strips = []
    for row in rows:
        steps = np.linspace(0, int(episodes.lengths[row]), num_frames).round().astype(np.int64)
        strips.append(enlarge(episodes.frames[int(row), steps], FRAME_PIXELS))  # [n, h, w, 3]
    height, width = strips[0].shape[1:3]
    sheet = _canvas(len(rows), 1, height, num_frames * (width + GAP_PIXELS) - GAP_PIXELS)
    for place, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        top = _top(place, height)
        _write_caption(sheet, episodes, int(row), GAP_PIXELS, top, sheet.width - 2 * GAP_PIXELS)
        for i, frame in enumerate(strip):
            left = GAP_PIXELS + i * (width + GAP_PIXELS)
            sheet.paste(Image.fromarray(frame), (left, top + CAPTION_PIXELS))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def playing_sheet(episodes: Episodes, rows: np.ndarray, num_columns: int = 3) -> bytes:
    """Animated WebP: these episodes in a grid, each of which rests on its last frame until the longest ends."""
    num_steps = int(episodes.lengths[rows].max())
    videos = [
        with_progress(enlarge(episodes.frames[int(row), : num_steps + 1], FRAME_PIXELS)) for row in rows
    ]  # [n, h, w, 3] each
    height, width = videos[0].shape[1:3]
    num_columns = min(num_columns, len(rows))
    ground = _canvas(-(-len(rows) // num_columns), num_columns, height, width)
    places = [(_top(i // num_columns, height), _left(i % num_columns, width)) for i in range(len(rows))]
    for row, (top, left) in zip(rows, places, strict=True):
        _write_caption(ground, episodes, int(row), left, top, width)
    frames = np.repeat(np.asarray(ground)[None], num_steps + 1, axis=0)
    for video, (top, left) in zip(videos, places, strict=True):
        frames[:, top + CAPTION_PIXELS : top + CAPTION_PIXELS + height, left : left + width] = video
    return encode(frames, lossless=episodes.frames.shape[2] < FRAME_PIXELS)


def _top(place: int, height: int) -> int:
    return GAP_PIXELS + place * (CAPTION_PIXELS + height + GAP_PIXELS)


def _left(place: int, width: int) -> int:
    return GAP_PIXELS + place * (width + GAP_PIXELS)


def _canvas(num_rows: int, num_columns: int, height: int, width: int) -> Image.Image:
    return Image.new("RGB", (_left(num_columns, width), _top(num_rows, height)), GROUND)


def _write_caption(sheet: Image.Image, episodes: Episodes, row: int, left: int, top: int, width: int) -> None:
    """Row, outcome, length and instruction, cut to `width` pixels."""
    draw = ImageDraw.Draw(sheet)
    outcome, color = ("success", SUCCESS) if episodes.success[row] else ("failure", FAILURE)
    head = f"{row} {outcome}"
    draw.text((left, top), head, color)
    begin = left + draw.textlength(head)
    rest = f", {episodes.lengths[row]} steps: {episodes.instructions[row]}"
    while rest and begin + draw.textlength(rest) > left + width:
        rest = rest[:-1]
    draw.text((begin, top), rest, INK)
