"""The plan's idea of an update agrees with the main loop on simulated actors."""

from __future__ import annotations

import pytest

from benchmarks.coordinator_run import GROUP_SIZE, Setup, make_config, simulate
from wmpo_ray.planning.update_time import StepTimes, expected_update

GROUP_S, JUDGE_S, UPDATE_S, WEIGHTS_S = 78.8, 0.8, 77.0, 3.1  # as in benchmarks/service_times.json
TIMES = StepTimes(GROUP_S / GROUP_SIZE, JUDGE_S, UPDATE_S, WEIGHTS_S)
MEMBERS = Setup(0, trajectories_per_request=1, updates=3, heartbeat_every_s=60.0)


@pytest.mark.parametrize(
    "setup",
    [
        MEMBERS._replace(actors=32, fill_probability=0.9),
        MEMBERS._replace(actors=256, fill_probability=0.9),
        MEMBERS._replace(actors=256, fill_probability=0.9, stream=False),
    ],
    ids=["32 actors", "256 actors", "256 actors, a learner that waits"],
)
def test_plan_and_main_loop_agree_within_a_tenth(setup):
    seconds = simulate(setup).update_s
    planned = expected_update(make_config(setup), TIMES, setup.actors, setup.keep_rate)
    assert planned.seconds == pytest.approx(seconds, rel=0.1)


def test_more_actors_more_kept_groups_and_a_learner_that_does_not_wait_take_less_time():
    def seconds(actors: int = 64, keep: float = 0.5, **changes) -> float:
        config = make_config(MEMBERS._replace(actors=actors, **changes))
        return expected_update(config, TIMES, actors, keep).seconds

    assert seconds(128) < seconds() < seconds(32)
    assert seconds(keep=0.9) < seconds() < seconds(keep=0.3)
    assert seconds() < seconds(stream=False)
    with pytest.raises(ValueError, match="keep_rate=0: the share of groups that are admitted lies above 0"):
        seconds(keep=0)
