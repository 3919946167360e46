"""Who stands where: the layout as pure functions, the reservations on a real cluster of several nodes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError
from rich.console import Console

from cluster.cli.plan_tables import print_fit
from cluster.runtimes.resources import Resources, ray_options
from cluster.workers.placement import (
    Bundle,
    PlacementBook,
    Reservation,
    bundle_of,
    bundles_for,
    check_placement,
    placement_warnings,
    smallest_bundles,
)
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError

GPUS = {
    "imagination": {"gpus": 0.5, "cpus": 1},
    "reward": {"gpus": 0.2, "cpus": 0},
    "learner": {"gpus": 0.3, "cpus": 2},
}
TIMEOUT_S = 60
FAST_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 10_000,  # a node that is slow to start is not a lost one
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


def sizes(imagination: int, reward: int) -> dict[str, int]:
    return {"imagination": imagination, "reward": reward}


def config_with(layout: str = "separate", cluster: dict | None = None, **placement: dict) -> Config:
    cluster = {"imagination_actors": 2, "reward_actors": 2, **(cluster or {})}
    return Config.model_validate({"cluster": cluster, "placement": {"layout": layout, **placement}})


class FakeReservation:
    """Counts; what is held where is the book's business."""

    def __init__(self, bundle: Bundle):
        self.place, self.released = (bundle, 0), 0

    def release(self) -> None:
        self.released += 1


# -- the layout --------------------------------------------------------------------------------------------------


def test_separate_gives_each_actor_a_bundle_of_its_own_and_the_learner_whole_gpus():
    config = config_with(**GPUS)
    bundles = bundles_for(config, sizes(2, 2))
    members = [member for bundle in bundles for member in bundle.members]
    assert all(len(bundle.members) == 1 for bundle in bundles) and len(set(members)) == len(members) == 5
    assert bundle_of(config, "learner").num_gpus == 1, "a share would let a world model onto the learner's GPU"
    assert bundle_of(config, "imagination", 1).resources == {"CPU": 1, "GPU": 0.5}


def test_collocated_shares_one_gpu_and_every_member_names_the_same_bundle():
    config = config_with("collocated", **GPUS)
    first = bundle_of(config, "learner")
    assert first == bundle_of(config, "imagination", 0) == bundle_of(config, "reward", 0)
    assert first.resources == {"CPU": 3.0, "GPU": 1.0}
    assert bundle_of(config, "imagination", 1).members == (("imagination", 1), ("reward", 1))
    assert bundle_of(config, "imagination", 1).num_gpus == pytest.approx(0.7)
    assert len(bundles_for(config, sizes(2, 2))) == 2


def test_a_reward_worker_beyond_the_last_imagination_worker_stands_alone():
    config = config_with("collocated", {"imagination_actors": 1, "reward_actors": 3}, **GPUS)
    assert bundle_of(config, "reward", 2).members == (("reward", 2),)
    assert [bundle.name for bundle in bundles_for(config, sizes(1, 3))] == [
        "imagination-0+reward-0+learner-0",
        "reward-1",
        "reward-2",
    ]


def test_more_than_one_shared_gpu_is_refused_and_the_keys_are_named():
    config = config_with("collocated", imagination={"gpus": 0.8}, learner={"gpus": 0.3})
    with pytest.raises(ConfigError, match=r"placement\.imagination\.gpus=0\.8.*placement\.learner\.gpus=0\.3 = 1\.1"):
        bundle_of(config, "learner")
    bundle_of(config, "imagination", 1)
    with pytest.raises(ConfigError, match=r"placement\.learner\.gpus=1\.5"):
        bundle_of(config_with(learner={"gpus": 1.5}), "learner")


def test_roles_that_share_a_bundle_share_its_node():
    config = config_with(
        "collocated",
        imagination={"cpus": 0, "gpus": 0.5, "accelerator_type": "H100", "labels": ["zone=a"]},
        learner={"cpus": 0, "labels": ["market=spot"]},
    )
    bundle = bundle_of(config, "learner")
    assert bundle.resources == {"CPU": pytest.approx(0.3), "GPU": 0.5, "accelerator_type:H100": 0.001}
    assert bundle.label_selector == {"zone": "a", "market": "spot"}
    for other in ({"accelerator_type": "A100"}, {"labels": ["zone=b"]}):
        clash = config_with("collocated", imagination=dict(config.placement.imagination), learner=other)
        with pytest.raises(ConfigError, match="placement.layout=separate"):
            bundle_of(clash, "learner")


# -- the book ----------------------------------------------------------------------------------------------------


def test_the_same_worker_gets_the_same_reservation_until_it_is_released():
    made = []
    book = PlacementBook(config_with(), lambda bundle: made.append(FakeReservation(bundle)) or made[-1])
    first = book.place("imagination", 0)
    assert book.place("imagination", 0) == first and len(made) == 1
    assert book.place("imagination", 1).bundle != first.bundle
    book.release("imagination", 0)
    book.release("imagination", 0)
    assert [reservation.released for reservation in made] == [1, 0]
    book.place("imagination", 0)
    assert len(made) == 3
    book.close()
    book.close()
    assert [reservation.released for reservation in made] == [1, 1, 1]


def test_a_shared_bundle_goes_with_the_last_actor_in_it():
    made = []
    book = PlacementBook(config_with("collocated", **GPUS), lambda b: made.append(FakeReservation(b)) or made[-1])
    places = [book.place(role, 0) for role in ("learner", "imagination", "reward")]
    assert len(made) == 1 and len({id(place.bundle[0]) for place in places}) == 1
    assert [place.num_gpus for place in places] == [0.3, 0.5, 0.2]
    book.release("imagination", 0)
    book.release("reward", 0)
    assert made[0].released == 0
    book.release("learner")
    assert made[0].released == 1


def test_nothing_is_reserved_in_one_process_and_for_roles_that_ask_for_nothing():
    assert PlacementBook(config_with(**GPUS), None).place("imagination", 0) == Resources(1, 0.5)
    book = PlacementBook(config_with(reward={"cpus": 0, "labels": ["zone=a"]}), pytest.fail)
    assert book.place("environment") == Resources()
    assert ray_options(book.place("reward", 0))["label_selector"] == {"zone": "a"}
    book.release("reward", 0)


# -- is there enough ---------------------------------------------------------------------------------------------


def test_only_the_fewest_workers_must_fit():
    config = config_with(cluster={"imagination_actors": [1, 50], "reward_actors": [0, 50]}, imagination={"cpus": 2})
    assert [bundle.name for bundle in smallest_bundles(config)] == ["learner-0", "imagination-0"]
    check_placement(config, {"CPU": 2.3})
    with pytest.raises(UserError, match=r"ask for 2\.3 CPUs .* there are 2; lower cluster\.imagination_actors"):
        check_placement(config, {"CPU": 2})
    check_placement(config, {"CPU": 2}, autoscaling=True)


def test_what_no_node_has_is_a_warning():
    config = config_with(imagination={"accelerator_type": "H100"}, reward={"labels": ["zone=a"]})
    node = {"Alive": True, "Resources": {"accelerator_type:H100": 1.0}, "Labels": {"zone": "a"}}
    assert placement_warnings(config, [node]) == []
    dead = placement_warnings(config, [node | {"Alive": False}])
    assert len(dead) == 2 and "placement.imagination.accelerator_type=H100" in dead[0] and "zone=a" in dead[1]


# -- on Ray ------------------------------------------------------------------------------------------------------


class Here:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and in each of zones a and b a node of 2 CPUs and one GPU that is only claimed."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for zone in ("a", "b"):
        cluster.add_node(num_cpus=2, num_gpus=1, labels={"zone": zone}, resources={"accelerator_type:H100": 1})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def spawn(place: Resources):
    return ray.remote(Here).options(max_restarts=0, **ray_options(place)).remote()


def node_of(actor) -> str:
    return ray.get(actor.node.remote(), timeout=TIMEOUT_S)


def zone_of(node_id: str) -> str:
    return next(node["Labels"]["zone"] for node in ray.nodes() if node["NodeID"] == node_id)


@pytest.mark.slow
def test_labels_and_accelerators_are_kept_with_and_without_a_bundle(cluster):
    for zone in ("a", "b"):
        wish = {"accelerator_type": "H100", "labels": [f"zone={zone}"]}
        config = config_with(imagination={"cpus": 0.5, "gpus": 0.5, **wish}, reward={"cpus": 0, **wish})
        book = PlacementBook(config, Reservation)
        actors = [spawn(book.place("imagination", 0)), spawn(book.place("reward", 0))]
        assert [zone_of(node_of(actor)) for actor in actors] == [zone, zone]
        for actor in actors:
            ray.kill(actor)
        book.close()


@pytest.mark.slow
def test_members_of_a_shared_bundle_stand_on_one_gpu_even_with_no_cpus(cluster):
    roles = {"imagination": {"gpus": 0.5}, "reward": {}, "learner": {"gpus": 0.5, "cpus": 1}}
    book = PlacementBook(config_with("collocated", {"reward_actors": 1}, **roles), Reservation)
    actors = [spawn(book.place(role, 0)) for role in roles]
    assert len({node_of(actor) for actor in actors}) == 1
    for actor in actors:
        ray.kill(actor)
    book.close()


def test_a_replaced_worker_stands_where_the_one_before_it_stood(cluster):
    book = PlacementBook(config_with(imagination={"cpus": 1.5}), Reservation)
    actors = [spawn(book.place("imagination", i)) for i in (0, 1)]
    nodes = [node_of(actor) for actor in actors]
    assert len(set(nodes)) == 2
    os.kill(ray.get(actors[0].pid.remote()), signal.SIGKILL)
    replaced = spawn(book.place("imagination", 0))
    assert node_of(replaced) == nodes[0]
    # No node has room for a third. It waits without blocking, and takes the place of one that is retired.
    third = spawn(book.place("imagination", 2))
    waiting = third.node.remote()
    assert ray.wait([waiting], timeout=1)[0] == []
    book.release("imagination", 1)
    assert ray.get(waiting, timeout=TIMEOUT_S) == nodes[1]
    book.close()


@pytest.mark.slow
def test_a_place_on_a_node_that_vanishes_moves_to_one_that_is_left(cluster):
    lost = cluster.add_node(num_cpus=1, labels={"zone": "c"})
    book = PlacementBook(config_with(imagination={"cpus": 1.0}, reward={"cpus": 2.0}), Reservation)
    others = [spawn(book.place("reward", i)) for i in (0, 1)]
    assert {zone_of(node_of(other)) for other in others} == {"a", "b"}
    worker = spawn(book.place("imagination", 0))
    assert zone_of(node_of(worker)) == "c", "the only room that is left"
    free = zone_of(node_of(others[0]))
    book.release("reward", 0)
    cluster.remove_node(lost, allow_graceful=False)
    assert zone_of(spawn_until_it_answers(book)) == free
    book.close()


def spawn_until_it_answers(book: PlacementBook) -> str:
    """Node of the worker. One spawned before the cluster knows that the node is gone dies with it, and never ran."""
    for _ in range(3):
        try:
            return node_of(spawn(book.place("imagination", 0)))
        except RayActorError:
            continue
    pytest.fail("three workers in a row died in the place of the first")


def test_plan_shows_where_the_bundles_of_a_run_could_stand(cluster):
    command = [sys.executable, "-m", "wmpo_ray", "plan", "smoke", "--address", cluster.address]
    command += ["--set", "world_model.pretrained=", "--set", "world_model.sampler.num_steps=1"]
    wishes = ["--set", "cluster.imagination_actors=[1, 3]", "--set", "placement.imagination.cpus=1.8"]
    fits = subprocess.run([*command, *wishes], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert fits.returncode == 0, fits.stdout + fits.stderr
    assert "1.8" in fits.stdout and "imagination-1" in fits.stdout
    assert [line for line in fits.stdout.splitlines() if "imagination-2" in line and "none now" in line]
    buffer = io.StringIO()
    too_large = config_with(learner={"cpus": 3.0})
    with pytest.raises(UserError, match=r"no node has room for learner-0 \(learner-0: 3 CPU\).*placement\.learner"):
        print_fit(Console(file=buffer, width=100), too_large, ray.nodes())
    assert "none" in buffer.getvalue() and "imagination-1" in buffer.getvalue()
