"""First fit: which node could take which bundle, as a pure function of what the nodes have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.planning.packing import first_fit


class Wish(NamedTuple):
    name: str
    resources: dict[str, float]
    label_selector: Mapping[str, str] = MappingProxyType({})


def node(name: str, alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict:
    return {"NodeName": name, "Alive": alive, "Labels": labels or {}, "Resources": resources}


wishes = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, 2.0])), max_size=12
)
machines = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=5)


@given(wishes, machines)
def test_no_node_gives_more_than_it_has_and_who_is_left_out_fits_nowhere(amounts, sizes):
    demands = [Wish(f"w{i}", {"CPU": cpus, "GPU": gpus}) for i, (cpus, gpus) in enumerate(amounts)]
    nodes = [node(f"n{i}", CPU=cpus, GPU=gpus) for i, (cpus, gpus) in enumerate(sizes)]
    found = first_fit(demands, nodes)
    assert list(found) == [demand.name for demand in demands]
    for machine in nodes:
        here = [demand.resources for demand in demands if found[demand.name] == machine["NodeName"]]
        for kind in ("CPU", "GPU"):
            assert sum(resources[kind] for resources in here) <= machine["Resources"][kind] + 1e-6
    for demand in demands:
        if found[demand.name] is None and demand.resources["GPU"] == 0:
            for machine in nodes:
                here = [other for other in demands if found[other.name] == machine["NodeName"]]
                taken = sum(other.resources["CPU"] for other in here)
                assert taken + demand.resources["CPU"] > machine["Resources"]["CPU"]


def test_shares_of_a_gpu_are_taken_of_one_gpu():
    three = [Wish(f"w{i}", {"GPU": 0.6}) for i in range(3)]
    assert list(first_fit(three, [node("n", GPU=2)]).values()) == ["n", "n", None], "1.8 of 2 GPUs, but not of any one"
    whole = [Wish("share", {"GPU": 0.1}), Wish("pair", {"GPU": 2})]
    assert first_fit(whole, [node("n", GPU=2)]) == {"share": None, "pair": "n"}
    assert first_fit(whole, [node("n", GPU=3)]) == {"share": "n", "pair": "n"}


def test_labels_accelerators_and_life_are_asked_for():
    nodes = [
        node("dead", alive=False, CPU=8, labels={"zone": "a"}),
        node("a", CPU=1, labels={"zone": "a"}),
        node("h", CPU=1, GPU=1, **{"accelerator_type:H100": 1.0}),
    ]
    in_zone = Wish("in-zone", {"CPU": 1}, {"zone": "a"})
    on_h100 = Wish("on-h100", {"GPU": 1, "accelerator_type:H100": 0.001})
    anywhere = Wish("anywhere", {"CPU": 1})
    assert first_fit([anywhere, in_zone, on_h100], nodes) == {"anywhere": "h", "in-zone": "a", "on-h100": "h"}
    assert first_fit([Wish("elsewhere", {"CPU": 1}, {"zone": "b"})], nodes) == {"elsewhere": None}


def test_who_needs_no_gpu_leaves_the_gpu_nodes_free():
    nodes = [node("gpu", CPU=2, GPU=1), node("cpu", CPU=2)]
    found = first_fit([Wish("learner", {"CPU": 2}), Wish("world", {"CPU": 2, "GPU": 1})], nodes)
    assert found == {"learner": "cpu", "world": "gpu"}
