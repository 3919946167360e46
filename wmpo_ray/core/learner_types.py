"""What the learner and the driver tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from wmpo_ray.core.types import WeightVersion


class StepFacts(NamedTuple):
    """About the delta of an optimizer step."""

    base: str = ""  # digest or name of the weights that it starts from; "": there is no delta
    name: str = ""  # of those that it leads to
    num_bytes: int = 0
    total_bytes: int = 0  # of all steps of the update so far, this one included
    update_bytes: int = 0  # of the update's own delta, once it is over


@dataclass
class UpdateResult:
    """The learner's report to the driver after an update."""

    version: WeightVersion
    metrics: dict[str, float] = field(default_factory=dict)
    oldest_checkpoint: int = 0  # the run can still go back to this update
    last_step: StepFacts | None = None  # which the learner has for those that hold the steps before it


@dataclass(frozen=True)
class LearnerState:
    """The state of a learner that was (re)started."""

    version: WeightVersion
    digests: dict[int, str]  # hash of the weights of every version so far
    history: list[dict]  # metrics of every update
    trained: list[tuple[int, int]]  # keys of the groups of the last update
    problems: list[str]  # problems with newer checkpoints


class UpdateFacts(NamedTuple):
    """The driver's facts about an update; saved with the checkpoint."""

    metrics: dict[str, float]
    keys: list[tuple[int, int]]  # of all its groups, in the order of the batch
    ledger_offset: int
    num_given: int = 0  # groups at the beginning of the batch that `update_part` was called with
