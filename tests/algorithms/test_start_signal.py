"""Starts that may still teach something come first."""

from __future__ import annotations

from fractions import Fraction
from math import factorial

import numpy as np
import pytest

from wmpo_ray.algorithms.start_signal import by_signal, mixed_probability


def exactly(successes: int, failures: int, size: int) -> Fraction:
    """From E[p^G] = B(a + G, b) / B(a, b) with factorials."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(factorial(a - 1) * factorial(b - 1), factorial(a + b - 1))

    a, b = 1 + successes, 1 + failures
    return 1 - (beta(a + size, b) + beta(a, b + size)) / beta(a, b)


@pytest.mark.parametrize("successes, failures", [(0, 0), (8, 0), (0, 16), (3, 5), (40, 1)])
@pytest.mark.parametrize("size", [2, 8])
def test_the_probability_is_that_of_the_beta_binomial_distribution(successes, failures, size):
    found = mixed_probability(np.array([successes]), np.array([failures]), size)[0]
    assert found == pytest.approx(float(exactly(successes, failures, size)), rel=1e-12)


def test_starts_that_were_always_or_never_solved_come_last_and_equal_ones_stay_in_their_order():
    shuffled = np.array([4, 2, 0, 3, 1])
    outcomes = [(0, 8, 0), (0, 8, 0), (1, 0, 8), (3, 4, 4)]
    order = by_signal(shuffled, outcomes, 8).tolist()
    assert order == [3, 4, 2, 1, 0], "half solved, unknown ones as shuffled, never solved, always solved for longer"
    assert by_signal(shuffled, [], 8).tolist() == shuffled.tolist()
