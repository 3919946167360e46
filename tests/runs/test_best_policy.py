"""The best policy on the way: a function of what was measured, whatever the order and whatever is interrupted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs import best_policy
from wmpo_ray.runs.best_policy import BestPolicy, candidate_path, check_best, is_candidate

VERIFIED = "reward.verify.enabled=true"
SUCCESS = {0: 0.25, 5: 0.5, 10: 0.75, 15: 0.75}


def keeper(folder: Path, *settings: str) -> BestPolicy:
    (folder / "first").mkdir(parents=True, exist_ok=True)
    return BestPolicy(load_config("demo", settings), folder / "checkpoints", folder / "first")


def save(best: BestPolicy, update: int) -> None:
    candidate_path(best.checkpoints, update).mkdir(parents=True)
    (candidate_path(best.checkpoints, update) / "weights").write_text(str(update))


def real(value: float) -> dict[str, float]:
    return {"real/success_rate": value, "real/success_low": value / 2, "real/success_high": 1.0}


@pytest.mark.parametrize("order", list(itertools.permutations(SUCCESS))[::5], ids=str)
def test_the_highest_success_wins_and_of_equal_ones_the_earliest_whatever_the_order(tmp_path, order):
    best = keeper(tmp_path)
    for update in order:
        if update:
            save(best, update)
    for update in order:
        best.measured(update, real(SUCCESS[update]))
        best = keeper(tmp_path)  # as after an interruption
    assert best.record is not None and (best.record.update, best.record.value, best.record.low) == (10, 0.75, 0.375)
    assert sorted(path.name for path in best.folder.iterdir()) == ["best.json", "update-000010"]
    assert best.unmeasured() == [] and (tmp_path / "first").is_dir()
    assert best.copy_to(tmp_path / "policy") and (tmp_path / "policy" / "weights").read_text() == "10"


def test_a_policy_that_only_got_worse_leaves_the_one_it_began_with(tmp_path):
    best = keeper(tmp_path)
    save(best, 5)
    best.measured(0, real(0.5))
    best.measured(5, real(0.25))
    assert best.path == tmp_path / "first" and best.unmeasured() == []


def test_a_kill_between_the_record_and_the_deletion_leaves_one_that_is_measured_again(tmp_path, monkeypatch):
    best = keeper(tmp_path)
    for update in (5, 10):
        save(best, update)
    best.measured(5, real(0.5))

    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(best_policy, "remove_directory", kill)
        best.measured(10, real(0.75))
    best = keeper(tmp_path)
    assert best.path == candidate_path(best.checkpoints, 10) and best.unmeasured() == [5]
    best.measured(5, real(0.5))
    assert best.path == candidate_path(best.checkpoints, 10) and best.unmeasured() == []


def test_what_is_not_a_success_rate_keeps_nothing(tmp_path):
    best = keeper(tmp_path)
    save(best, 5)
    for metrics in ({}, real(float("nan")), {"imagined/success_rate": 1.0}):
        best.measured(5, metrics)
    assert best.record is None and best.unmeasured() == [5]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"update": -1, "metric": "a", "value": 0.5}', '{"update": 1, "metric": "a", "value": NaN}']
)
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, text):
    best = keeper(tmp_path)
    best.folder.mkdir(parents=True)
    (best.folder / "best.json").write_text(text)
    with pytest.raises(UserError, match=r"best.json.*delete .*best.json"):
        keeper(tmp_path)


@pytest.mark.parametrize(
    ("settings", "metric", "candidates"),
    [
        ((), "real/success_rate", [5, 10, 15]),
        (("evaluation.every_updates=0",), "imagined/success_rate", list(range(1, 16))),
        (("evaluation.every_updates=0", VERIFIED), "imagined/verified_success_rate", list(range(1, 16))),
        (("evaluation.every_updates=0", "recipe.kind=grpo-online"), "rollout/success_rate", list(range(1, 16))),
        (("evaluation.every_updates=0", "recipe.kind=bc-imagined"), None, []),
        (("recipe.kind=dpo",), None, []),
    ],
)
def test_which_versions_are_measured_and_by_what(tmp_path, settings: tuple[str, ...], metric: Any, candidates: list):
    config = load_config("demo", settings)
    assert [update for update in range(1, 16) if is_candidate(config, update)] == candidates
    assert metric is None or keeper(tmp_path, *settings).metric == metric


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("recipe.kind=dpo",), "dpo measures no success on the way"),
        (("grpo.num_updates=4",), "evaluation.every_updates=5 is more than grpo.num_updates=4"),
        (("evaluation.every_updates=0", "recipe.kind=bc-imagined"), "filter.max_staleness=1000000 and rollout_bc"),
    ],
)
def test_the_best_policy_cannot_be_asked_for_where_nothing_is_measured(settings, said):
    with pytest.raises(ConfigError, match=f'final_policy = "best": .*{said}.*to "last"'):
        check_best(load_config("demo", (*settings, "evaluation.final_policy=best")))
    check_best(load_config("demo", settings))
    check_best(load_config("demo", ("evaluation.final_policy=best",)))
