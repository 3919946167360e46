"""An evaluation batch by batch: each leaves its outcomes and, while videos are wanted, those that may be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from actors.recording_actor import Ended, EpisodeBatch
from cluster.recording.parts import Parts, read_whole
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import sha256_of_folder
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import load_episodes
from wmpo_ray.rollout.evaluation import in_memory, successes_first
from wmpo_ray.rollout.video_choice import VideoChoice
from wmpo_ray.runs.outcomes import Outcomes, environment_hash, read_outcomes, start_tasks, write_outcomes


class Evaluation:
    """The batches of one policy. Each is a pure function, so outcomes and videos depend on the starts alone."""

    def __init__(self, config: Config, policy: Path, batches: Sequence[EpisodeBatch], parts: Parts):
        self.batches, self._parts = batches, parts
        self._config, self._policy_sha256 = config, sha256_of_folder(policy)
        self._done: dict[int, Outcomes] = {}
        for batch in batches:
            if (found := self._read(batch)) is not None:
                self._done[batch.first] = found

    @property
    def num_done(self) -> int:
        """Episodes."""
        return sum(len(outcomes.starts) for outcomes in self._done.values())

    def missing(self) -> Iterator[tuple[EpisodeBatch, str | None]]:
        """(batch, file for its videos) of all that are missing; None once those before a batch have shown enough."""
        for batch in [batch for batch in self.batches if batch.first not in self._done]:
            yield batch, None if self._choice().is_complete else str(self._parts.path(batch))

    def take(self, batch: EpisodeBatch, ended: Ended) -> None:
        """Write the outcomes of a batch: then it is done."""
        failures = {name: flags.tolist() for name, flags in ended.failures.items()}
        outcomes = self._outcomes(batch, ended.success.tolist(), ended.lengths.tolist(), failures)
        write_outcomes(self._parts.path(batch, "json"), outcomes)
        self._done[batch.first] = outcomes

    def _outcomes(
        self, batch: EpisodeBatch, success: list[bool], lengths: list[int], failures: dict[str, list[bool]]
    ) -> Outcomes:
        return Outcomes(
            environment=environment_hash(self._config),
            policy=self._policy_sha256,
            temperature=self._config.evaluation.temperature,
            sampling_key=list(batch.run_key),
            starts=batch.seeds.tolist(),
            success=success,
            lengths=lengths,
            failures=failures,
            tasks=start_tasks(self._config, batch.seeds),
        )

    def outcomes(self) -> Outcomes:
        return Outcomes.joined([self._done[batch.first] for batch in self.batches])

    def videos(self) -> Episodes:
        """Those that `VideoChoice` chooses, in memory. Raises UserError where one is missing or damaged."""
        choice, chosen = VideoChoice(), []
        for batch in self.batches:
            rows = _take(choice, self._done[batch.first])
            if len(rows):
                kept = load_episodes(self._parts.path(batch))
                chosen.append(in_memory(kept.rows(np.searchsorted(kept.seeds, batch.seeds[rows]))))
        return successes_first(chosen)

    def _choice(self) -> VideoChoice:
        """After the batches that are done before the first one that is missing."""
        choice = VideoChoice()
        for batch in self.batches:
            if batch.first not in self._done:
                break
            _take(choice, self._done[batch.first])
        return choice

    def _read(self, batch: EpisodeBatch) -> Outcomes | None:
        """What an earlier attempt left of a batch, if it is whole and was made as it would be made now."""
        try:
            found = read_outcomes(self._parts.path(batch, "json"))
            if found != self._outcomes(batch, found.success, found.lengths, found.failures):
                return None
            choice = self._choice()  # of the batches before: in order, the next one missing is this one
            if len(_take(choice, found)):
                read_whole(self._parts.path(batch))
            return found
        except UserError:
            return None


def _take(choice: VideoChoice, outcomes: Outcomes) -> np.ndarray:
    return choice.take(
        np.array(outcomes.success, bool), {name: np.array(flags, bool) for name, flags in outcomes.failures.items()}
    )
