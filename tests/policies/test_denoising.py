"""Flow-GRPO's sampler against its formulas, computed here by other means and in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from wmpo_ray.policies.flow.denoising import noised, path_log_probs, path_rules, step_rule, times_of

MEAN, STD = 0.4, 0.3  # of a Gaussian as data, whose velocity is known


def velocity_of_gaussian(x: float, t: float) -> float:
    """E[x_1 - x_0 | x_t = x]: (x_0, x_1) given x_t are jointly Gaussian."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def moments_after(num_steps: int, noise: float) -> tuple[float, float]:
    """Mean and deviation of what the sampler gives: its steps are linear here, so both follow without drawing anything."""
    mean, variance = 0.0, 1.0
    times = times_of(num_steps)
    for time, rule in zip(times[:-1], path_rules(num_steps, noise), strict=True):
        offset = velocity_of_gaussian(0.0, time)
        slope = velocity_of_gaussian(1.0, time) - offset
        gain = rule.keep + rule.push * slope
        mean = gain * mean + rule.push * offset
        variance = gain**2 * variance + rule.spread**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7, 1.5])
def test_the_sde_has_the_marginals_of_the_ode(noise):
    """Both give the data's distribution, with an error that is a part of the size of a step."""
    for num_steps in (250, 1000, 4000):
        assert moments_after(num_steps, noise) == pytest.approx((MEAN, STD), abs=2 / num_steps)


def test_without_the_correction_of_the_drift_it_would_not():
    mean, variance, times = 0.0, 1.0, times_of(4000)
    for time, rule in zip(times[:-1], path_rules(4000, 0.7), strict=True):
        offset = velocity_of_gaussian(0.0, time)
        gain = 1 - (velocity_of_gaussian(1.0, time) - offset) / 4000
        mean, variance = gain * mean - offset / 4000, gain**2 * variance + rule.spread**2
    assert math.sqrt(variance) > STD + 0.1


# Worked out by hand from Eq. 9: s^2 = a^2 t / (1 - t), h = t' - t, (1 + s^2 h / 2t, (1 + s^2 (1 - t) / 2t) h, s sqrt(-h)).
@pytest.mark.parametrize(
    ("time", "following", "noise", "expected"),
    [
        (0.5, 0.25, 0.8, (1 - 0.64 / 1 * 0.25, -(1 + 0.64 / 2) * 0.25, 0.8 * 0.5)),
        (0.2, 0.0, 0.5, (1 - 0.0625 / 0.4 * 0.2, -(1 + 0.0625 * 0.8 / 0.4) * 0.2, 0.25 * math.sqrt(0.2))),
        (1.0, 0.75, 0.7, (1 - 1.96 / 2 * 0.25, -0.25, 1.4 * 0.5)),
        (0.6, 0.3, 0.0, (1.0, -0.3, 0.0)),
    ],
)
def test_a_step_is_that_of_equation_9(time, following, noise, expected):
    assert step_rule(time, following, noise) == pytest.approx(expected, abs=1e-12)


def test_times_go_from_one_to_zero_in_equal_steps():
    assert times_of(4) == [1.0, 0.75, 0.5, 0.25, 0.0] and times_of(1) == [1.0, 0.0]
    assert times_of(7)[-1] == 0.0


def test_the_log_probability_of_a_path_is_that_of_its_gaussian_steps():
    """Each value of each step against scipy's normal density around the step that the SDE itself prescribes."""
    generator = np.random.default_rng(0)
    path, velocity, noise = generator.normal(size=(2, 4, 2, 3)), generator.normal(size=(2, 3, 2, 3)), 0.6
    times, expected = (1.0, 2 / 3, 1 / 3, 0.0), np.zeros((2, 3, 2, 3))
    for step in range(3):
        t, h = times[step], times[step + 1] - times[step]
        sigma = noise * math.sqrt(t / (1 - (t if step else times[1])))
        x, v = path[:, step], velocity[:, step]
        drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
        expected[:, step] = norm.logpdf(path[:, step + 1], x + drift * h, sigma * math.sqrt(-h))
    found = path_log_probs(torch.from_numpy(path), torch.from_numpy(velocity), noise)
    np.testing.assert_allclose(found.numpy(), expected.reshape(2, -1), atol=1e-10)
    single = path_log_probs(torch.from_numpy(path).float(), torch.from_numpy(velocity).float(), noise)
    np.testing.assert_allclose(single.numpy(), expected.reshape(2, -1), atol=2e-5)


def test_noised_data_lies_on_the_straight_line_and_moves_along_it():
    data, noise = torch.randn(2, 3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    for time, expected in ((0.0, data), (1.0, noise), (0.25, 0.75 * data + 0.25 * noise)):
        states, velocity = noised(data, noise, torch.full((3, 4), time))
        torch.testing.assert_close(states, expected)
        torch.testing.assert_close(states - time * velocity, data)
