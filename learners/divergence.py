"""Detects diverged trainings, so that they end with an error and keep the last good checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wmpo_ray.config.algorithms import TrainingSection
from wmpo_ray.core.errors import UserError

MAX_SKIPPED_IN_A_ROW = 10  # in a supervised training: weights without a finite loss never recover


def check_num_skipped(num_skipped: int, update: int, section: str, settings: TrainingSection) -> None:
    """Raises UserError once `max_skipped_steps` optimizer steps were skipped."""
    if num_skipped >= settings.max_skipped_steps:
        raise UserError(
            f"{num_skipped} optimizer steps had a loss or gradient that is not finite (update {update}); lower "
            f"{section}.learning_rate={settings.learning_rate}, which starts the stage over, or continue with "
            f"--resume and a higher {section}.max_skipped_steps={settings.max_skipped_steps}"
        )


def was_skipped(step: Mapping[str, float | None]) -> bool:
    """Whether an optimizer step with these metrics is skipped; None is a non-finite value read from a checkpoint."""
    return any(value is None or not math.isfinite(value) for value in (step["policy/loss"], step["policy/grad_norm"]))


def check_update(
    are_skipped: Sequence[bool], num_bad: float, update: int, section: str, settings: TrainingSection
) -> None:
    """Raises UserError for weights that no actor could use, and for a last update that had no effect.

    Args:
        are_skipped: for each optimizer step of the update
        num_bad: log-probabilities under the new weights that are not finite
        update: counted from 1
        section: of the configuration, for what to change
    """
    advice = (
        f"lower {section}.learning_rate={settings.learning_rate}; the last checkpoint is the one before this update"
    )
    if num_bad:
        raise UserError(f"after update {update} the policy gives log-probabilities that are not finite; {advice}")
    if update == settings.num_updates and all(are_skipped):
        raise UserError(
            f"the last update, {update}, changed nothing: each of its {len(are_skipped)} optimizer steps had a loss or gradient "
            f"that is not finite; {advice}"
        )


def check_skipped_in_a_row(num_skipped: int, num_steps: int, section: str, learning_rate: float) -> None:
    """Raises UserError where the latest steps of a supervised training all had a loss that is not finite.

    Args:
        num_skipped: steps without a finite loss since the last one with it
        num_steps: of the whole training
        section: of the configuration
    """
    if num_skipped >= min(MAX_SKIPPED_IN_A_ROW, max(1, num_steps - 1)):
        raise UserError(
            f"the loss was not finite in the latest {num_skipped} of {num_steps} steps; lower "
            f"{section}.learning_rate={learning_rate}"
        )
