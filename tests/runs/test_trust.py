"""The trust card: pairs of the same version, and a warning only where the policy exploits the world."""

from __future__ import annotations

import pytest

from wmpo_ray.runs.trust import TrustWatch, trust_card, versions


def lines(pairs: list[tuple[float, float]]) -> list[dict]:
    """Metrics of a run whose version u has these (imagined, real) successes."""
    found = [{"update": u, "real/success_rate": real} for u, (_, real) in enumerate(pairs)]
    found += [
        {
            "update": u + 1,
            "imagined/success_rate": imagined,
            "real/label_agreement": 0.9,
            "real/false_positive_rate": 0.08,
        }
        for u, (imagined, _) in enumerate(pairs)
    ]
    return found


def test_an_update_imagines_with_the_weights_before_it():
    assert versions(lines([(0.5, 0.4), (0.6, 0.5)])) == [(0, 0.5, 0.4), (1, 0.6, 0.5)]


def test_the_card_compares_gains_gaps_and_errors():
    card = trust_card(lines([(0.4, 0.4), (0.5, 0.45), (0.8, 0.6), (0.7, 0.65)]))
    assert card["versions"] == 4 and card["lift"] == pytest.approx(0.25 / 0.3)
    assert card["gap"] == pytest.approx(0.05) and card["exploited"] == pytest.approx(0.2)
    assert card["closed_loop_false_negatives"] == pytest.approx(0.02)
    assert 0.9 < card["pearson"] < 1 and card["rank_violation"] == pytest.approx(0.1 / 4)
    assert trust_card([{"update": 1, "imagined/success_rate": 0.5}]) == {}


def test_a_run_is_warned_once_when_only_imagination_rises():
    watch, said = TrustWatch(), []
    for line in sorted(lines([(0.4, 0.4), (0.5, 0.5), (0.7, 0.3), (0.9, 0.2)]), key=lambda line: line["update"]):
        if text := watch.note(line["update"], line):
            said.append((line["update"], text))
    ((update, text),) = said
    assert update == 3 and "from 50% to 70% since update 1 while the real one fell from 50% to 30%" in text
    both_rise = TrustWatch()
    assert not any(both_rise.note(line["update"], line) for line in lines([(0.4, 0.4), (0.6, 0.5), (0.9, 0.8)]))
