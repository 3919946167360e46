"""Videos inside the page: looping WebP pictures that play in step, because both worlds are one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wmpo_ray.report.card import card, missing
from wmpo_ray.report.markup import Markup, join, tag
from wmpo_ray.report.run_data import DisruptedStarts, PolicyVideos, RunData, VideoPairs

TARGET_PIXELS, START_PIXELS = 190, 120  # height of a frame of a video, and of a row of start frames
GAP_PIXELS = 8
STRIP_PIXELS = 4  # progress of the episode, under the picture
FRAME_MS, HOLD_MS = 110, 1500
MAX_VIDEO_BYTES = 4_200_000  # base64 makes 5.6 MB of them
SHOWS = {
    "none": "undisturbed",
    "position": "position: things lie beyond where they are placed otherwise",
    "background": "background: another ground",
    "texture": "texture: other surfaces of the things",
}
STRIP, GROUND = (120, 128, 140), (205, 209, 214)


@dataclass
class VideoBudget:
    """Bytes that are left for videos on this page."""

    left: int = MAX_VIDEO_BYTES


def enlarge(frames: np.ndarray, target: int = TARGET_PIXELS) -> np.ndarray:
    """[n, H, W, 3] uint8, small ones enlarged by a whole factor and large ones shrunk to about `target` rows."""
    height, width = frames.shape[1:3]
    if height <= target:
        factor = max(1, round(target / height))
        return frames.repeat(factor, axis=1).repeat(factor, axis=2)
    size = (max(1, round(width * target / height)), target)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two videos [n, H, W, 3] as one [n, H, 2W + gap, 4], transparent between them."""
    gap = np.zeros((*left.shape[:2], GAP_PIXELS, 4), np.uint8)
    return np.concatenate([_opaque(left), gap, _opaque(right)], axis=2)


def _opaque(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames, np.full((*frames.shape[:3], 1), 255, np.uint8)], axis=3)


def with_progress(frames: np.ndarray) -> np.ndarray:
    """A strip below each frame [n, H, W, C] that fills up to the last one: where a loop begins would be unclear else."""
    n, _, width, channels = frames.shape
    strip = np.full((n, STRIP_PIXELS, width, channels), 255, np.uint8)
    strip[..., :3] = GROUND
    for i in range(n):
        strip[i, :, : round(width * (i + 1) / n), :3] = STRIP
    return np.concatenate([frames, strip], axis=1)


def encode(frames: np.ndarray, lossless: bool) -> bytes:
    """Animated WebP of [n, H, W, 3 or 4] uint8 that loops and rests on its last frame."""
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [FRAME_MS] * (len(pictures) - 1) + [HOLD_MS]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        lossless=lossless,
        quality=70,
        method=3,
    )
    return buffer.getvalue()


def picture_source(frames: np.ndarray, small: bool, budget: VideoBudget) -> str | None:
    """The address that holds a picture of frames [n, H, W, 3 or 4], or None if the page has no room for it."""
    # Flat blocks of enlarged pixels are smaller and sharper without loss; camera pictures are not.
    data = encode(frames, lossless=small)
    if len(data) > budget.left:
        return None
    budget.left -= len(data)
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")


def _picture(frames: np.ndarray, small: bool, description: str, budget: VideoBudget) -> Markup | None:
    """The `img` element, or None if the page has no room for it."""
    source = picture_source(with_progress(frames), small, budget)
    if source is None:
        return None
    height, width = frames.shape[1] + STRIP_PIXELS, frames.shape[2]
    look = "pixels" if small else None
    return tag("img", src=source, alt=description, width=width, height=height, class_=look)


def _outcome(good: bool) -> Markup:
    return tag("b", "success" if good else "failure", class_="good" if good else "bad")


def pair_figure(pairs: VideoPairs, i: int, budget: VideoBudget) -> Markup | None:
    """One pair with the label of each world, and whether they agree."""
    stop = 1 + int(np.clip(pairs.lengths[i], 0, pairs.real.shape[1] - 1))
    real, imagined = enlarge(pairs.real[i, :stop]), enlarge(pairs.imagined[i, :stop])
    agree = bool(pairs.real_success[i]) == bool(pairs.imagined_success[i])
    description = f"{pairs.instructions[i]}: real on the left, imagined on the right"
    picture = _picture(side_by_side(real, imagined), pairs.real.shape[2] < TARGET_PIXELS, description, budget)
    if picture is None:
        return None
    heads = tag(
        "div",
        tag("span", tag("i", class_="swatch tone-real"), "real: ", _outcome(pairs.real_success[i])),
        tag("span", tag("i", class_="swatch tone-imagined"), "imagined: ", _outcome(pairs.imagined_success[i])),
        class_="heads",
    )
    state = tag("b", "✓ agree" if agree else "✗ disagree", class_="good" if agree else "bad")
    steps = f" · {stop - 1} steps"
    caption = tag("figcaption", heads, tag("div", tag("span", pairs.instructions[i], steps), state, class_="ends"))
    return tag("figure", picture, caption, class_="video pair" + ("" if agree else " disagree"))


def featured_pair(pairs: VideoPairs) -> int:
    """The pair for the top of the page: a success in both worlds if there is one, the longest of them."""
    both = pairs.real_success & pairs.imagined_success
    candidates = np.flatnonzero(both) if both.any() else np.arange(len(both))
    return int(candidates[np.argmax(pairs.lengths[candidates])])


def featured_section(run: RunData, budget: VideoBudget) -> Markup:
    """One pair of worlds, large."""
    title = "The same actions in both worlds"
    figure = None
    if run.pairs is not None and len(run.pairs.real):
        figure = pair_figure(run.pairs, featured_pair(run.pairs), budget)
    if figure is None:
        return card(title, missing("No videos yet: videos/side_by_side.npz is not there."))
    how = "Left: reality. Right: imagined from the first frame and the actions."
    return card(title, figure, how=how, kind="card featured")


def pairs_section(run: RunData, budget: VideoBudget) -> Markup:
    """All other pairs, disagreements first."""
    title = "More actions in both worlds"
    pairs = run.pairs
    if pairs is None or not len(pairs.real):
        return card(title, missing("No videos yet: videos/side_by_side.npz is not there."), kind="card wide")
    agree = pairs.real_success == pairs.imagined_success
    order = [i for i in np.argsort(agree, kind="stable") if i != featured_pair(pairs)]
    lead = f"{int(agree.sum())} of the {len(agree)} pairs chosen for this page end with the same label in both worlds."
    figures = [pair_figure(pairs, int(i), budget) for i in order]
    how = "A disagreement is what a policy can exploit: look at which frame the worlds part."
    return card(title, tag("p", lead, class_="lead"), _gallery(figures), how=how, kind="card wide")


def policy_section(videos: PolicyVideos | None, who: str, file_name: str, tone: str, budget: VideoBudget) -> Markup:
    """Failures and successes of one policy in the real environment."""
    title = f"{who} in the real environment"
    if videos is None or not len(videos.frames):
        return card(title, missing(f"No videos yet: videos/{file_name} is not there."))
    figures = []
    for i in np.argsort(videos.success, kind="stable"):
        stop = 1 + int(np.clip(videos.lengths[i], 0, videos.frames.shape[1] - 1))
        frames = enlarge(videos.frames[i, :stop])
        small = videos.frames.shape[2] < TARGET_PIXELS
        picture = _picture(frames, small, f"{videos.instructions[i]}, {who}", budget)
        how = " after a failed attempt" if videos.recovered[i] else ""
        words = (_outcome(videos.success[i]), f"{how} · {stop - 1} steps", tag("span", videos.instructions[i]))
        caption = tag("figcaption", *words)
        figures.append(None if picture is None else tag("figure", picture, caption, class_=f"video tone-{tone}"))
    return card(title, _gallery(figures), how="Failures first. Each video rests on its last frame.")


def _gallery(figures: Sequence[Markup | None]) -> Markup:
    left_out = sum(figure is None for figure in figures)
    note = missing(f"{left_out} more in the folder videos: the page is full.") if left_out else None
    return join([tag("div", *figures, class_="gallery"), note])


def disruption_section(run: RunData, budget: VideoBudget) -> Markup | None:
    """None for a run without them: of an environment that disrupts nothing, or not evaluated."""
    starts = run.disrupted
    if starts is None:
        return None
    figures = [_row_of_starts(name, starts, i, budget) for i, name in enumerate(starts.names)]
    how = "Each strip shows the same held-out starts. environment.disruption says which of them a run records and evaluates."
    return card("The same starts, disrupted", _gallery(figures), how=how, kind="card wide")


def _row_of_starts(name: str, starts: DisruptedStarts, i: int, budget: VideoBudget) -> Markup | None:
    frames = enlarge(starts.frames[i], START_PIXELS)
    gap = np.zeros((frames.shape[1], GAP_PIXELS, 4), np.uint8)
    row = np.concatenate([part for frame in _opaque(frames) for part in (gap, frame)][1:], 1)
    small = starts.frames.shape[2] < START_PIXELS
    source = picture_source(row[None], small, budget)
    if source is None:
        return None
    picture = tag(
        "img",
        src=source,
        alt=f"{len(frames)} start frames, {name}",
        width=row.shape[1],
        height=row.shape[0],
        class_="pixels" if small else None,
    )
    return tag("figure", picture, tag("figcaption", SHOWS.get(name, name)), class_="video")
