"""How many workers, and that the autoscaler is asked and released: laws of the rule, and one real cluster."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RpcError

from benchmarks.autoscaling import measure
from cluster.workers.elasticity import Autoscaler, WorkerTargets, target_workers
from cluster.workers.placement import bundles_for
from wmpo_ray.config.run import Config

BAR_S = 30.0
rates = st.floats(1e-3, 1e3)


def sizes(imagination: int, reward: int) -> dict[str, int]:
    return {"imagination": imagination, "reward": reward}


def config_with(**sections: dict) -> Config:
    return Config.model_validate(sections)


# -- the rule ----------------------------------------------------------------------------------------------------


@given(rates, rates, st.integers(0, 20), st.integers(0, 60), st.integers(0, 100), st.integers(1, 200), st.booleans())
def test_the_target_is_within_the_bounds_and_never_more_than_useful(demand, rate, low, more, current, useful, in_waves):
    high = max(low + more, 1)
    target = target_workers((low, high), min(current, high), demand, rate, useful, in_waves)
    assert max(low, 1) <= target <= high
    if current == 0:
        assert target <= max(useful, low)


@given(rates, st.integers(1, 64))
def test_overlapped_generation_feeds_the_learner_with_as_few_workers_as_can(rate, ratio):
    target = target_workers((1, 100), 0, ratio * rate * 0.99, rate, 1000)
    assert target * rate >= ratio * rate * 0.99 > (target - 1) * rate


@given(st.floats(0.1, 100), st.integers(1, 60))
def test_alternating_generation_stops_at_the_knee(update_s, generation_updates):
    """With n = g/u the speedup times the efficiency is larger than with any other number of workers."""
    generation_s = generation_updates * update_s
    target = target_workers((1, 100), 0, 1 / update_s, 1 / generation_s, 1000)

    def power(n: int) -> float:
        return 1 / (n * (generation_s / n + update_s) ** 2)

    assert power(target) >= max(power(n) for n in range(1, 101)) * (1 - 1e-6)


@given(rates, rates, st.integers(1, 100), st.integers(1, 100))
def test_no_worker_is_idle_in_the_last_wave_for_nothing(demand, rate, high, useful):
    plain = target_workers((1, high), 0, demand, rate, useful)
    in_waves = target_workers((1, high), 0, demand, rate, useful, in_waves=True)
    assert math.ceil(useful / in_waves) == math.ceil(useful / plain) and in_waves <= plain
    assert in_waves == 1 or math.ceil(useful / (in_waves - 1)) > math.ceil(useful / in_waves)


@given(rates, rates, st.lists(st.floats(0.9, 1.1), min_size=2, max_size=20), st.integers(1, 50), st.booleans())
def test_rates_that_wander_by_a_tenth_never_make_it_flap(demand, rate, noise, useful, in_waves):
    current, history = 0, []
    for factor in noise:
        current = target_workers((0, 50), current, demand * factor, rate, useful, in_waves)
        history.append(current)
    assert history == sorted(history), "it may grow to the largest need seen, and stays there"


def test_without_a_measurement_it_starts_small_and_without_work_it_is_as_small_as_may_be():
    assert target_workers((0, 8), 0, None, None, 10) == 1
    assert target_workers((2, 8), 0, None, 3.0, 10) == 2
    assert target_workers((0, 8), 5, None, 3.0, 10) == 5, "a running worker is kept while nothing is measured"
    assert target_workers((0, 8), 5, 1.0, 1.0, 10, has_work=False) == 0
    assert target_workers(3, 0, 100.0, 1.0, 10) == 3


def test_a_demand_that_falls_for_good_frees_workers():
    grown = target_workers((1, 16), 1, 8.0, 1.0, 16)
    assert grown == 8 and target_workers((1, 16), grown, 2.0, 1.0, 16) == 3


def test_rates_are_measured_and_reward_workers_follow_imagination_workers():
    config = config_with(
        cluster={"imagination_actors": [0, 8], "reward_actors": [0, 8]},
        rollout={"groups_per_update": 40, "groups_per_request": 4},
        filter={"max_staleness": 1},
    )
    targets = WorkerTargets(config)
    assert targets.targets() == sizes(1, 1)
    for _ in range(5):
        targets.rolled_out(4, seconds=4.0)  # one group a second
        targets.scored(4, seconds=2.0)  # two
        targets.updated(60, seconds=10.0)  # 40 trained, 20 rejected: six a second
    assert targets.targets() == sizes(6, 3)
    assert targets.targets(has_work=False) == sizes(0, 0)


def test_there_are_never_more_workers_than_requests_to_hand_out():
    config = config_with(
        cluster={"imagination_actors": [0, 100]}, rollout={"groups_per_update": 40, "groups_per_request": 4}
    )
    targets = WorkerTargets(config)
    targets.rolled_out(4, seconds=1000.0)
    targets.updated(40, seconds=0.1)
    assert targets.targets()["imagination"] == 10


# -- the autoscaler ----------------------------------------------------------------------------------------------


class Head:
    """Remembers what it was asked, and can be away."""

    def __init__(self) -> None:
        self.heard: list[dict] = []
        self.away = False

    def __call__(self, **options) -> None:
        if self.away:
            raise RpcError("unavailable")
        self.heard.append(options)


def test_a_request_is_sent_once_and_withdrawn_once():
    nothing = {"cpus": 0}
    config = config_with(
        placement={"imagination": {"cpus": 2, "labels": ["zone=a"]}, "reward": nothing, "learner": nothing}
    )
    head = Head()
    autoscaler = Autoscaler(head)
    autoscaler.withdraw()
    assert head.heard == [], "what another run asked for is not ours to take back"
    for _ in range(3):
        autoscaler.request(bundles_for(config, sizes(2, 5)))
    assert head.heard == [{"bundles": [{"CPU": 2.0}] * 2, "bundle_label_selectors": [{"zone": "a"}] * 2}]
    autoscaler.request(bundles_for(config, sizes(3, 5)))
    assert len(head.heard) == 2 and len(head.heard[-1]["bundles"]) == 3
    autoscaler.withdraw()
    autoscaler.withdraw()
    assert head.heard[2:] == [{"bundles": []}]


def test_what_the_head_did_not_hear_is_said_again():
    bundles = bundles_for(config_with(), sizes(1, 1))
    head = Head()
    autoscaler = Autoscaler(head)
    head.away = True
    assert not autoscaler.request(bundles) and not autoscaler.withdraw()
    head.away = False
    assert autoscaler.withdraw() and head.heard == [{"bundles": []}], "it may have heard the request after all"
    assert autoscaler.request(bundles) and autoscaler.request(bundles) and len(head.heard) == 2


def test_nodes_come_on_request_and_go_after_its_withdrawal():
    metrics = measure(count=2)
    assert metrics["autoscale_up_s"] < BAR_S and metrics["autoscale_down_s"] < BAR_S
    assert metrics["standing_requests"] == 0
