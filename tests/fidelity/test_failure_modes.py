"""The taxonomy of failures, and what is compared of it."""

import numpy as np
import pytest

from wmpo_ray.fidelity.failure_modes import compare_modes, modes_of

SUCCESS = np.array([True, False, False, False, True])
FAILURES = {"miss": np.array([True, True, False, True, False]), "drop": np.array([False, True, False, False, True])}


def test_every_episode_has_one_mode():
    assert modes_of(SUCCESS, FAILURES).tolist() == ["success", "drop", "timeout", "miss", "success"]
    assert modes_of(SUCCESS, None).tolist() == ["success", *["failure"] * 3, "success"]
    assert modes_of(SUCCESS, {}).tolist() == ["success", *["timeout"] * 3, "success"]


def test_what_is_imagined_as_it_was_stands_on_the_diagonal():
    real = modes_of(SUCCESS, FAILURES)
    found = compare_modes(real, {"imagined": real.copy()}, ("miss", "drop"))
    assert found["modes"] == ["success", "miss", "drop", "timeout"]
    assert found["confusion"]["imagined"] == np.diag([2, 1, 1, 1]).tolist()
    agreement = found["agreement"]["imagined"]
    assert agreement["value"] == agreement["high"] == 1 and 0.5 < agreement["low"] < 0.6, "of five episodes"
    assert found["shares"]["imagined"]["miss"]["low"] > 0 and found["shares"]["real"]["drop"]["high"] > 0.5
    assert all(difference["value"] == 0 for difference in found["differences"]["imagined"].values())


def test_rows_are_real_and_columns_imagined_and_every_share_sums_to_one():
    real = np.array(["success", "miss", "miss", "timeout"], object)
    imagined = np.array(["miss", "miss", "success", "success"], object)
    found = compare_modes(real, {"imagined": imagined}, ("miss", "drop"))
    modes, table = found["modes"], np.array(found["confusion"]["imagined"])
    assert modes == ["success", "miss", "drop", "timeout"], "the modes of the task are there even if nothing shows them"
    assert table[modes.index("success"), modes.index("miss")] == 1
    assert table[modes.index("timeout"), modes.index("success")] == 1
    assert table.sum(1).tolist() == [1, 2, 0, 1] and table.sum(0).tolist() == [2, 2, 0, 0]
    for shares in found["shares"].values():
        assert sum(share["value"] for share in shares.values()) == pytest.approx(1)
    difference = found["differences"]["imagined"]["success"]
    assert difference["value"] == pytest.approx(0.25) and difference["low"] <= 0.25 <= difference["high"]


def test_where_modes_cannot_be_told_real_ones_are_held_against_success_and_failure():
    real, imagined = modes_of(SUCCESS, FAILURES), modes_of(~SUCCESS, None)
    found = compare_modes(real, {"imagined": imagined}, ("miss", "drop"))
    assert found["modes"] == ["success", "miss", "drop", "timeout", "failure"]
    assert np.array(found["confusion"]["imagined"]).sum(0).tolist() == [3, 0, 0, 0, 2]
