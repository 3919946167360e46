"""Action ids and the scale of a data set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.core.errors import UserError
from wmpo_ray.policies.openvla.actions import ActionStatistics, ActionTokenizer


@given(st.floats(-2, 2), st.integers(2, 300))
def test_a_decoded_id_is_within_half_a_bin_of_the_clipped_action(action, bins):
    tokenizer = ActionTokenizer(1000, bins)
    ids = tokenizer.encode(torch.tensor([action]))
    assert 1000 - bins <= int(ids) <= 999
    assert abs(float(tokenizer.decode(ids)) - min(max(action, -1), 1)) <= 1 / (bins - 1) + 1e-6


@given(st.integers(3, 300), st.data())
def test_ids_survive_decoding_and_encoding_but_for_the_lowest(bins, data):
    tokenizer = ActionTokenizer(1000, bins)
    ids = torch.tensor([data.draw(st.integers(1000 - bins + 1, 999))])
    assert torch.equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    lowest = torch.tensor([1000 - bins, 1000 - bins + 1])
    assert tokenizer.decode(lowest).unique().numel() == 1


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_normalising_undoes_unnormalising(actions):
    statistics = ActionStatistics([-3.0, 0.5, 0.0], [2.0, 0.75, 1.0], [True, True, False])
    given_actions = torch.tensor(actions, dtype=torch.float64)
    units = statistics.unnormalize(given_actions)
    assert torch.equal(units[2], given_actions[2]), "what is masked out has no scale"
    assert -3 - 1e-6 <= float(units[0]) <= 2 + 1e-6
    torch.testing.assert_close(statistics.normalize(units), given_actions, atol=1e-7, rtol=0)


ACTION = {"q01": [0.0, 0.0], "q99": [1.0, 1.0], "mask": [True, True]}


@pytest.mark.parametrize(
    ("statistics", "key", "message"),
    [
        ({}, None, "no action statistics"),
        ([], None, "no action statistics"),
        ({"a": {"action": ACTION}, "b": {}}, None, "set unnorm_key"),
        ({"a": {"action": ACTION}}, "b", r"unnorm_key=\"b\" is not in s.json, which has \['a'\]"),
        ({"a": {}}, None, "action"),
        ({"a": 3}, None, "action"),
        ({"a": {"action": {**ACTION, "q99": [1.0, "x"]}}}, None, "q99"),
        ({"a": {"action": {**ACTION, "q99": [1.0, float("inf")]}}}, None, "q99"),
        ({"a": {"action": {**ACTION, "mask": [True]}}}, None, "mask has 1"),
        (
            {"a": {"action": {**ACTION, "q01": [0.0, 2.0]}}},
            None,
            r"\"a\": action: .*dimension 1 has q01 = 2 above q99 = 1",
        ),
        ({"a": {"action": {**ACTION, "min": [3.0, 0.0], "max": [1.0, 1.0]}}}, None, "min = 3 above max = 1"),
        ({"a": {"action": {**ACTION, "std": [0.5, -0.5]}}}, None, "std = -0.5 is negative"),
        ({"a": {"action": {**ACTION, "q01": [float("nan"), 0.0]}}}, None, "q01.0 = nan|q01.0 = NaN"),
        ({"a": {"action": {**ACTION, "mean": [0.0] * 3}}}, None, "mean has 3"),
        ({"a": {"action": {**ACTION, "q01": [0.0]}}}, None, "q01 has 1, q99 has 2"),
        ({"a": {"action": {"q01": [0.0] * 3, "q99": [0.0] * 3}}}, None, "set action_dim"),
    ],
)
def test_statistics_that_do_not_fit_are_named(statistics, key, message):
    with pytest.raises(UserError, match=message):
        ActionStatistics.find(statistics, key, 2, "s.json")


def test_the_only_data_set_needs_no_name():
    assert ActionStatistics.find({"a": {"action": ACTION}}, None, 2, "s.json").q99.tolist() == [1.0, 1.0]


def test_a_dimension_that_never_moves_is_no_fault():
    still = {"q01": [0.5, 0.0], "q99": [0.5, 1.0], "std": [0.0, 1.0], "min": [0.5, 0.0], "max": [0.5, 2.0]}
    assert ActionStatistics.find({"a": {"action": still}}, None, 2, "s.json").q01.tolist() == [0.5, 0.0]
