"""Correlation, order and calibration, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wmpo_ray.statistics.agreement import (
    agreement_by_step,
    calibration,
    correlation,
    mean_maximum_rank_violation,
    rank_correlation,
    safe_horizon,
)


def test_correlations_need_three_different_values():
    assert correlation([0.1, 0.2, 0.4], [0.2, 0.4, 0.8]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 100]) == pytest.approx(1.0)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert correlation([1, 2], [1, 2]) is None and rank_correlation([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        correlation([1, 2, 3], [1, 2])


def test_a_wrong_order_costs_the_difference_of_real_success():
    """Of three policies the worst pair is swapped: both of it pay .3, the third pays nothing."""
    assert mean_maximum_rank_violation([0.1, 0.2, 0.9], [0.4, 0.1, 0.9]) == pytest.approx(0.6 / 3)
    assert mean_maximum_rank_violation([1, 2, 3], [0.1, 0.5, 0.9]) == 0.0


def test_calibration_is_the_mean_distance_of_confidence_and_truth():
    error, curve = calibration(np.array([0.25, 0.25, 0.95, 1.0]), np.array([True, False, True, True]))
    assert curve == [(0.25, 0.5, 2), (pytest.approx(0.975), 1.0, 2)]
    assert error == pytest.approx(0.5 * 0.25 + 0.5 * 0.025)


def test_the_safe_horizon_ends_before_outcomes_part():
    """One of two trajectories succeeds at step 2 in reality and at step 3 in imagination; the other never does."""
    success, steps = np.array([True, False]), np.array([3, 4])
    agreement = agreement_by_step(success, steps, success, np.array([2, 4]), horizon=4)
    assert agreement.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert safe_horizon(agreement, 0.9) == 1 and safe_horizon(agreement, 0.5) == 4
