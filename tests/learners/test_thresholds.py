"""The threshold of a reward model: the best F1, and a bound of the failures that it lets through."""

from __future__ import annotations

import numpy as np
import pytest

from learners.supervised.thresholds import (
    Judged,
    check_failures,
    choose_bounded_threshold,
    choose_threshold,
    false_positive_bound,
)
from wmpo_ray.core.errors import UserError


def drawn(seed: int, count: int = 400, overlap: float = 0.25) -> Judged:
    """Scores of successes and failures that overlap."""
    rng = np.random.default_rng(seed)
    success = rng.random(count) < 0.5
    return Judged(np.clip(np.where(success, 0.7, 0.3) + rng.normal(0, overlap, count), 0, 1), success)


def test_the_threshold_maximises_f1_in_the_middle_of_its_plateau():
    best = np.array([0.1, 0.2, 0.8, 0.9])
    threshold, curve = choose_threshold(best, np.array([False, False, True, True]))
    assert 0.45 < threshold < 0.55
    assert max(point["f1"] for point in curve) == 1.0


def test_a_bounded_threshold_is_the_best_of_those_that_keep_the_bound_in_every_world():
    worlds, loose = [drawn(0), drawn(1, overlap=0.3)], 0.999
    free, _ = choose_threshold(*(np.concatenate(parts) for parts in zip(*worlds, strict=True)))
    assert choose_bounded_threshold(worlds, loose)[0] == free, "a bound that says nothing changes nothing"
    for max_rate in (0.2, 0.1, 0.05):
        chosen, curve = choose_bounded_threshold(worlds, max_rate)
        assert max(false_positive_bound(world, chosen) for world in worlds) <= max_rate
        assert chosen > free
        f1 = {point["threshold"]: point["f1"] for point in curve}
        kept = [t for t in f1 if all(false_positive_bound(world, t) <= max_rate for world in worlds)]
        assert f1[chosen] == max(f1[t] for t in kept)


def test_the_bound_holds_for_failures_that_were_not_seen():
    """Over many draws the true rate at the chosen threshold exceeds the bound in at most 5% of them (and noise)."""
    max_rate, broken, unseen = 0.1, 0, drawn(10_000, 50_000)
    for seed in range(100):
        chosen, _ = choose_bounded_threshold([drawn(seed, 150)], max_rate)
        broken += (unseen.best[~unseen.success] >= chosen).mean() > max_rate
    assert broken <= 11, "P(more than 11 of 100) at 5% is below 0.5%"


def test_too_few_failures_are_said_before_a_model_is_trained():
    few = Judged(np.zeros(40), np.arange(40) < 20)
    with pytest.raises(UserError, match=r"rate=0.05: 20 failed episodes.*below 0.139, and 59 without"):
        check_failures([few], 0.05)
    check_failures([few], 0.14)
    certain = Judged(np.ones(200), np.arange(200) < 100)
    check_failures([certain], 0.05)
    with pytest.raises(UserError, match="100 failed episodes.*below 1.000.*reward.max_false_positive_rate"):
        choose_bounded_threshold([certain], 0.05)
