"""Outcomes of single starts: rates follow from them, and runs meet on the starts that they share."""

import json

import numpy as np
import pytest

from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.core.types import Episodes
from wmpo_ray.runs.outcomes import (
    Outcomes,
    environment_hash,
    on_common_starts,
    read_outcomes,
    start_tasks,
    write_outcomes,
)

SUCCESS = [True, False, False, True, False]


def outcomes(**changes) -> Outcomes:
    values = {
        "environment": "e",
        "policy": "p",
        "temperature": 1.0,
        "sampling_key": [0, "evaluate"],
        "starts": [10, 11, 12, 13, 14],
        "success": SUCCESS,
        "lengths": [4, 8, 8, 6, 8],
        "failures": {"miss": [True, True, False, False, True]},
    }
    return Outcomes(**(values | changes))


def test_outcomes_come_back_as_they_were_written(tmp_path):
    write_outcomes(tmp_path / "outcomes" / "final.json", outcomes())
    assert read_outcomes(tmp_path / "outcomes" / "final.json") == outcomes()


def test_rate_and_metrics_follow_from_the_outcomes():
    low, high = wilson_interval(2, 5)
    assert outcomes().rate == {"value": 0.4, "low": low, "high": high, "num": 5}
    # A miss in an episode that succeeded later is no failure.
    metrics = outcomes().metrics
    assert metrics["success"] == 0.4 and metrics["failures"] == {"miss": 0.4} and metrics["success_length"] == 5.0
    assert outcomes(success=[False] * 5).metrics["success_length"] is None
    assert metrics["failed_attempts"] == 0.6 and metrics["recovered"] == pytest.approx(1 / 3), "one of three misses"
    assert outcomes(failures={"miss": [False] * 5}).metrics["recovered"] is None
    assert "recovered" not in outcomes(failures={}).metrics, "this environment does not know"


def test_each_of_several_tasks_has_a_rate_of_its_own_and_one_task_leaves_no_trace(tmp_path):
    names = ["push", "pocket", "push", "push", "pocket"]
    several = outcomes(tasks=names)
    rates = several.metrics["tasks"]
    assert {name: rate["num"] for name, rate in rates.items()} == {"push": 3, "pocket": 2}
    assert rates["push"]["value"] == pytest.approx(2 / 3) and rates["push"]["low"] == wilson_interval(2, 3)[0]
    part = several.of_tasks(["pocket"])
    assert (part.starts, part.success, part.failures) == ([11, 14], [False, False], {"miss": [True, True]})
    assert Outcomes.joined([several, outcomes(tasks=names)]).tasks == names * 2
    with pytest.raises(ValueError, match="tasks has 1 entries for 5 starts"):
        outcomes(tasks=["push"])
    for name, found in {"one": outcomes(), "several": several}.items():
        write_outcomes(tmp_path / name, found)
        assert read_outcomes(tmp_path / name) == found
        assert ("tasks" in json.loads((tmp_path / name).read_text())) == (name == "several")
    assert "tasks" not in outcomes().metrics


def test_an_evaluation_knows_the_task_of_each_start_and_one_task_keeps_its_hash():
    two = load_config("two-tasks")
    assert set(start_tasks(two, range(10))) == {"pocket", "push"} and start_tasks(load_config("demo"), range(10)) == []
    assert environment_hash(load_config("demo")) == "c8b8b2a48d6c7127", "as of runs before there were several tasks"
    assert environment_hash(two) != environment_hash(load_config("demo"))


def test_outcomes_of_episodes_name_environment_policy_and_sampling(tmp_path):
    config = load_config("smoke")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    frames, actions = np.zeros((5, 1, 2, 2, 3), np.uint8), np.zeros((5, 8, 3), np.float32)
    seeds, lengths = np.arange(10, 15), np.array([4, 8, 8, 6, 8])
    episodes = Episodes(frames, actions, lengths, np.array(SUCCESS), ("do",) * 5, seeds, {"miss": np.array(SUCCESS)})
    found = Outcomes.of(episodes, config, tmp_path, (3, "evaluate"))
    assert (found.starts, found.success, found.sampling_key) == (seeds.tolist(), SUCCESS, [3, "evaluate"])
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert Outcomes.of(episodes, config, tmp_path, (3, "evaluate")).policy != found.policy
    disrupted = load_config("smoke", ["environment.disruption=texture"])
    assert environment_hash(config) == environment_hash(load_config("smoke", ["seed=7"])) != environment_hash(disrupted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("success", [True]),
        ("success", [1, 0, 0, 1, 0]),
        ("starts", [10, 10, 12, 13, 14]),
        ("starts", "all"),
        ("failures", {"miss": []}),
        ("format", 2),
        ("temperature", None),
        ("other", 1),
    ],
)
def test_a_damaged_file_is_named(tmp_path, key, value):
    path = tmp_path / "final.json"
    path.write_text(json.dumps(outcomes().model_dump() | {key: value}))
    with pytest.raises(UserError, match="final.json is damaged"):
        read_outcomes(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b"[" * 100_000])
def test_what_is_no_json_object_is_damaged(tmp_path, content):
    (tmp_path / "final.json").write_bytes(content)
    with pytest.raises(UserError, match="final.json"):
        read_outcomes(tmp_path / "final.json")


def test_runs_meet_on_the_starts_that_they_share():
    more = outcomes(starts=[14, 13, 7, 8, 10], success=[True, False, True, True, True])
    first, second = on_common_starts([outcomes(), more])
    assert (first.tolist(), second.tolist()) == ([True, True, False], [True, False, True])  # of 10, 13 and 14
    assert on_common_starts([outcomes(), outcomes(starts=[1, 2, 3, 4, 5])]) is None
    assert on_common_starts([outcomes(), outcomes(environment="another")]) is None
