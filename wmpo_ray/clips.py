"""One trajectory to look at: frames, actions, and what was decided about it.

T actions and T+1 frames, D action dimensions, W windows of a reward model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.observations import StartState
from wmpo_ray.report.clip_view import ClipView, clip_html, clip_webp


@dataclass(frozen=True, eq=False)
class Score:
    """The decision about one clip."""

    success: bool
    finish_step: int  # actions executed until the decision, T where none fell before
    probability: float  # highest window probability; 1 or 0 where the environment has decided
    refuted: bool = False  # a success that the second world model did not confirm
    windows: np.ndarray | None = field(default=None, repr=False)  # [W] of each window; None from an environment
    unknown: bool = False  # refuted, and by the run's settings therefore neither a success nor a failure


@dataclass(eq=False)
class Clip:
    """One trajectory of a policy in some world; as the last line of a notebook cell it plays."""

    frames: np.ndarray  # [T+1, H, W, 3] uint8, the first one is the start
    actions: np.ndarray  # [T, D] float32
    start: StartState
    instruction: str
    origin: str  # which policy acted in which world
    score: Score | None = None  # set by `judge`, or by the environment
    _decide: Callable[[Clip], Score] | None = field(default=None, repr=False)

    def judge(self) -> Score:
        """What the run's judge decides about these frames; of a real clip, what the environment said.

        Raises UserError while the run has no reward model.
        """
        if self.score is None:
            assert self._decide is not None, "a clip that nobody judges has a score from the beginning"
            self.score = self._decide(self)
        return self.score

    def save(self, path: str | Path) -> None:
        """Write the video as an animated WebP."""
        atomic_write(Path(path), clip_webp(self._shown()))

    def __repr__(self) -> str:
        return f"<clip of {len(self.actions)} steps: {self.instruction!r}, {self.origin}, {self._outcome()}>"

    def _repr_html_(self) -> str:
        score = self.score
        success = None if score is None else score.success
        text = self._outcome() if score is None else f" {self._outcome().partition(' ')[2]}"
        windows, shown = None if score is None else score.windows, self._shown()
        if windows is not None:  # those that end within what is shown
            windows = windows[: len(windows) - (len(self.frames) - len(shown))]
        return str(clip_html(ClipView(shown, self.instruction, self.origin, success, text, windows)))

    def _shown(self) -> np.ndarray:
        """Frames up to the end, where there is one before the last."""
        return self.frames if self.score is None else self.frames[: self.score.finish_step + 1]

    def _outcome(self) -> str:
        if self.score is None:
            return "not judged yet: clip.judge()"
        if self.score.refuted:
            word = "unknown" if self.score.unknown else "failure"
            return f"{word}, because the second world model did not confirm it"
        word = "success" if self.score.success else "failure"
        at_most = "" if self.score.windows is None else f", probability {self.score.probability:.2f}"
        return f"{word} after {self.score.finish_step} steps{at_most}"
