"""Success of two runs on the start states that both were evaluated on, where their folders have each outcome."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.outcomes import POLICIES, Outcomes, on_common_starts, read_outcomes, run_outcomes_file
from wmpo_ray.statistics.paired import Pairs, newcombe_paired_interval
from wmpo_ray.watch.significance import Verdict, paired_gains_test, paired_test, sequential_sentence

Interval = tuple[float, float]


class PairedOutcomes(NamedTuple):
    """Success [N] bool of base and final policy of both runs, on the same N starts in the same order."""

    base: tuple[np.ndarray, np.ndarray]  # of A and of B
    final: tuple[np.ndarray, np.ndarray]

    @classmethod
    def read(cls, folders: tuple[Path, Path], notes: list[str]) -> Self | None:
        """None where a run has no outcomes, or the two have no start in common; a damaged file becomes a note."""
        files = [run_outcomes_file(folder, policy) for policy in POLICIES for folder in folders]
        if not all(file.is_file() for file in files):
            return None
        found: list[Outcomes] = []
        for file in files:
            try:
                found.append(read_outcomes(file))
            except UserError as error:
                notes.append(f"{error}.")
                return None
        success = on_common_starts(found)
        if success is None:
            notes.append("The runs were evaluated on different start states, so they are compared by their rates.")
            return None
        return cls((success[0], success[1]), (success[2], success[3]))

    @property
    def gains_verdict(self) -> Verdict:
        return paired_gains_test(self.base[0], self.final[0], self.base[1], self.final[1])

    @property
    def gain_intervals(self) -> tuple[Interval, Interval]:
        """95% interval of final minus base success, of both runs."""
        first, second = (newcombe_paired_interval(Pairs.of(*pair)) for pair in zip(self.base, self.final, strict=True))
        return first, second

    @property
    def sequential(self) -> str:
        """What a sequential test of the final policies would have said."""
        return sequential_sentence(*self.final)


def paired_verdict(outcomes: tuple[np.ndarray, np.ndarray]) -> tuple[Verdict, float, Interval]:
    """(verdict, rate B minus rate A, its 95% interval) of outcomes on the same starts."""
    pairs = Pairs.of(*outcomes)
    return paired_test(*outcomes), pairs.difference, newcombe_paired_interval(pairs)
