"""How right a world model is about held-out episodes, replayed open loop: what checkpoints are chosen by.

A lower loss was seen to give a worse world: contact decides success and is rare in the loss. So where something can say
what a video shows, events of an environment or the labels of a reward model, its agreement about real and imagined
videos of the same actions counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wmpo_ray.core.interfaces import Judge, World
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import Episodes, Frames, Videos
from wmpo_ray.data.episodes import batch_within
from wmpo_ray.rollout.fidelity import binary_report, psnr_per_frame, replay_batches, starts_of

Detect = Callable[[Any], dict[str, np.ndarray]]  # videos [M, T+1, H, W, 3] -> event -> [M] bool
AGREEMENT = "_agreement"  # ends the name of each


def detect_in_both(
    detect: Detect, real: np.ndarray | Frames, imagined: np.ndarray, lengths: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Events in two videos of each episode; after its end, which cannot be compared, both hold still."""
    last = np.minimum(np.arange(imagined.shape[1])[None], lengths[:, None])[..., None, None, None]
    return detect(real), detect(np.take_along_axis(imagined, last, 1))


class HeldOutJudge:
    """Replays episodes in a world model and compares. What it holds is one batch of videos.

    detect: events that pixels show, of an environment; judge: of success, by pixels too. `has_labels`: whether the success
    of the episodes is known; if not, the judge's word about the real video counts.
    """

    def __init__(
        self, episodes: Episodes, seed: int, detect: Detect | None, judge: Judge | None, has_labels: bool = True
    ):
        self.episodes, self.seed, self.detect, self.judge, self.has_labels = episodes, seed, detect, judge, has_labels

    def metrics(self, world: World) -> dict[str, float]:
        """`psnr_db`, the mean over episodes, and agreement as far as something can judge: `label_agreement`, `EVENT_agreement`."""
        episodes, done = self.episodes, 0
        starts, psnr = starts_of(episodes), 0.0
        pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}  # of each batch: real, imagined
        size = batch_within(episodes.frames.shape)
        for imagined in replay_batches(world, starts, episodes.actions, self.seed, size):
            rows = slice(done, done + len(imagined))
            part, done = episodes.rows(rows), rows.stop
            real = np.asarray(part.frames)
            for i, length in enumerate(part.lengths):
                row = slice(i, i + 1)
                psnr += float(psnr_per_frame(real[row], imagined[row], part.lengths[row])[:length].mean())
            for name, pair in self._verdicts(part, starts[rows], real, imagined).items():
                pairs.setdefault(name, []).append(pair)
        metrics = {"psnr_db": psnr / len(episodes)}
        for name, parts in pairs.items():
            truth, found = (np.concatenate(column) for column in zip(*parts, strict=True))
            report = binary_report(found, truth)
            metrics[f"{name}{AGREEMENT}"] = report["agreement"]
            if name == "label":
                metrics |= {key: report[key] for key in ("false_positives", "false_negatives", "true_rate")}
        return metrics

    def _verdicts(
        self, part: Episodes, starts: list[StartState], real: np.ndarray, imagined: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What is judged -> verdict [M] bool on the real videos and on the imagined ones."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if self.judge is not None:
            labels = part.success if self.has_labels else self._success(real, part, starts)
            found["label"] = (labels, self._success(imagined, part, starts))
        if self.detect is not None:
            events, seen = detect_in_both(self.detect, real, imagined, part.lengths)
            found |= {event: (flags, seen[event]) for event, flags in events.items()}
        return found

    def _success(self, videos: np.ndarray, part: Episodes, starts: list[StartState]) -> np.ndarray:
        assert self.judge is not None
        return self.judge.judge(Videos(videos, part.instructions, part.actions, tuple(starts))).success


def mean_agreement(metrics: dict[str, float]) -> float | None:
    """Over all that was judged; None where nothing was."""
    found = [value for name, value in metrics.items() if name.endswith(AGREEMENT)]
    return sum(found) / len(found) if found else None
