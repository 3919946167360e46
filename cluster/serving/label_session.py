"""The verdicts of a person, and of a reward model, on episodes that came without one: what terminal and page share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wmpo_client.refusals import Refusal
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.exchange.recording import Recording
from wmpo_ray.registry import load_reward_model
from wmpo_ray.remote.robot_episodes import RECEIVED, EpisodeFolder, Label, read_episode
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.round_folders import newest_result

VERDICTS: dict[str, Label] = {"y": "success", "n": "failure"}


class Guess(NamedTuple):
    """Of a reward model."""

    success: bool
    probability: float


class Shown(NamedTuple):
    """The episode that is to be labelled now."""

    id: str
    path: Path
    instruction: str
    num_steps: int
    guess: Guess | None


class EpisodeJudge:
    """The newest reward model of a run, asked about episodes of robots. Raises UserError for a run without one."""

    def __init__(self, run: Path):
        folder = RunFolder(run)
        config, path = folder.config, newest_result(folder, "models/reward-model", "reward-model", "reward model")
        self._model, self._min_steps = load_reward_model(config, str(path)), config.reward.min_steps

    def __call__(self, found: Recording) -> Guess | None:
        """None: it cannot say, of an episode that is shorter than a clip or whose frames or instruction it does not know."""
        try:
            probabilities = self._model.probabilities(found.frames[None], [found.instruction])
        except (ValueError, RuntimeError):
            return None
        if not probabilities.shape[1]:
            return None
        scores = self._model.decide(probabilities, self._min_steps, found.length)
        probability = float(scores.probability[0])
        return Guess(bool(scores.success[0]), probability) if probability >= 0 else None


class Labelling:
    """Episodes without a verdict, one after the other. `report` hears of those that cannot be shown.

    judge: gives a guess beside each. Raises UserError for a folder without episodes of robots.
    """

    def __init__(
        self,
        folder: Path,
        report: Callable[[str], None],
        judge: Callable[[Recording], Guess | None] | None = None,
    ):
        if not (folder / RECEIVED).is_dir():
            raise UserError(
                f"{folder} holds no episodes of robots: there is no {RECEIVED} in it; name the RUN/robot of a server"
            )
        self.episodes, self._report, self._judge = EpisodeFolder(folder), report, judge
        self.waiting, self.done = self.episodes.unlabelled(), list[str]()
        self.place, self.has_ended = 0, False

    def label_what_is_sure(self, sure: float) -> int:
        """Keep the guesses of at least this probability, of success or of failure; returns how many there were."""
        assert self._judge is not None
        left, num = [], len(self.waiting)
        for id in self.waiting:
            shown = self._shown(id)
            guess = None if shown is None else shown.guess
            if guess is not None and (guess.probability if guess.success else 1 - guess.probability) >= sure:
                self.episodes.set_label(id, "success" if guess.success else "failure", guess.probability)
            else:
                left.append(id)
        self.waiting = left
        return num - len(left)

    def current(self) -> Shown | None:
        """The next episode; None: there is none left. What cannot be shown is passed over."""
        while self.place < len(self.waiting):
            if (shown := self._shown(self.waiting[self.place])) is not None:
                return shown
            self.place += 1
        return None

    def press(self, key: str) -> None:
        """y success, n failure, u undo, s skip, q end; another key does nothing."""
        if key == "q":
            self.has_ended = True
        elif key == "u" and self.done:
            last = self.done.pop()
            self.place = self.waiting.index(last)
            self.episodes.set_label(last, None)
        elif self.place >= len(self.waiting):
            return
        elif key in VERDICTS:
            id = self.waiting[self.place]
            self.episodes.set_label(id, VERDICTS[key])
            self.done.append(id)
            self.place += 1
        elif key == "s":
            self.place += 1

    def _shown(self, id: str) -> Shown | None:
        path = self.episodes.path(id)
        try:
            about = read_episode(path).recording
        except Refusal as refusal:
            self._report(f"{id} cannot be shown: {refusal}")
            return None
        guess = None if self._judge is None else self._judge(about)
        return Shown(id, path, about.instruction, about.length, guess)
