"""Decisions of recorded episodes: the same wherever the frames lie, and no other frame is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.support.recorded import recorded
from wmpo_ray.algorithms.recorded import decisions
from wmpo_ray.data.episodes import RaggedFrames


class WatchedFrames(RaggedFrames):
    """Remembers which frames were read."""

    def read(self, rows, steps, out):
        self.seen = set(zip(rows.tolist(), steps.tolist(), strict=True))
        super().read(rows, steps, out)


def test_only_the_frames_of_the_drawn_decisions_are_read():
    whole = recorded()
    videos = [video[: length + 1] for video, length in zip(whole.frames, whole.lengths, strict=True)]
    lazy = WatchedFrames(videos, whole.frames.shape[1] - 1, whole.frames.shape[2:])
    rows = np.array([7, 2])
    expected, found = (decisions(each, rows, 4, 4) for each in (whole, replace(whole, frames=lazy)))
    assert np.array_equal(expected[0], found[0])
    assert all(torch.equal(one, other) for one, other in zip(expected[1:], found[1:], strict=True))
    steps = range(0, int(whole.lengths[rows].max()), 4)
    assert lazy.seen == {(row, min(step, int(whole.lengths[row]))) for row in (7, 2) for step in steps}
