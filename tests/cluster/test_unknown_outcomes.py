"""Disputed successes that are left open: what the ledger knows of them survives an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors import reward_actor
from cluster.loop.train import TrainingLoop
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.small_run import finish, make_loop, save_models, small_config
from wmpo_ray.core.types import Scores, Videos
from wmpo_ray.rollout.requests import member_seeds


class Doubtful:
    """Leaves a third of the successes open, drawn for each member: a second world that differs as often as is needed."""

    def __init__(self, judge):
        self.first = judge

    def judge(self, videos: Videos) -> Scores:
        scores, seeds = self.first.judge(videos), member_seeds(videos.members, {"doubt": "doubt"})
        drawn = np.array([np.random.default_rng(seed).random() for seed in seeds("doubt", 0)])
        refuted = scores.success & (drawn < 1 / 3)
        return replace(scores, success=scores.success & ~refuted, refuted=refuted, known=~refuted)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


@pytest.fixture(scope="module", autouse=True)
def doubt():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_actor, "make_judge", lambda config, judge, *others: Doubtful(judge))
        yield


def updates_of(log) -> list[list[float]]:
    keys = ("policy/loss", "imagined/unknown_share", "imagined/verified_success_rate", "queue/undecided")
    return [[line[key] for key in keys] for line in log.lines if "policy/loss" in line]


@pytest.fixture(scope="module")
def whole(models, doubt, tmp_path_factory) -> tuple[str, TrainingLoop, list[list[float]]]:
    folder = tmp_path_factory.mktemp("whole")
    loop, log = make_loop(small_config(), SerialRuntime(), models, folder)
    return finish(loop, folder), loop, updates_of(log)


def test_there_is_something_to_dispute(whole):
    _, loop, updates = whole
    assert all(0 < unknown < 1 for _, unknown, *_ in updates)
    undecided = [record for record in loop.ledger.records.values() if record.facts.get("verdict") == "undecided"]
    assert len(undecided) == sum(row[3] for row in updates) > 0 and loop.ledger.account().balances


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_a_run_that_is_cut_between_verdicts_ends_with_the_same_weights(whole, models, tmp_path, after):
    """Cut after so many scored requests: some groups are admitted, some undecided, some under way."""
    loop, _ = make_loop(small_config(), SerialRuntime(), models, tmp_path)
    settle, scored = loop.settle, []

    def cut(event) -> None:
        settle(event)
        scored.append(event)
        loop.ledger.flush()
        if len(scored) == after:
            raise KeyboardInterrupt

    loop.settle = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        finish(loop, tmp_path)
    loop, log = make_loop(small_config(), SerialRuntime(), models, tmp_path)
    assert finish(loop, tmp_path) == whole[0]
    updates = updates_of(log)
    assert updates == whole[2][-len(updates) :], "the same groups, with the same outcomes left open"
