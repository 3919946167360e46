"""Members of a group on different actors: the same weights, wherever each was imagined and however requests are cut."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.rollout_actor import RolloutActor
from cluster.host.connection import start_here
from cluster.loop.ledger import Ledger, LedgerError, State
from cluster.loop.members import Handle, Members, ScoredMembers
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.small_run import SETTINGS, run, save_models, small_config, small_starts
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import GroupRequest, Piece, RolloutRequest, Scores, Stored
from wmpo_ray.policies.weight_exchange import WeightEncoder
from wmpo_ray.registry import load_policy


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


def cut(size: int, fill: float = 0.0, actors: int = 1, placement: str = "with_imagination") -> Config:
    settings = {
        **SETTINGS,
        "rollout": {**SETTINGS["rollout"], "slots": 1, "trajectories_per_request": size},
        "filter": {"fill_probability": fill},
        "reward": {**SETTINGS["reward"], "placement": placement},
        "cluster": {"imagination_actors": actors},
    }
    return Config.model_validate(settings)


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> str:
    return run(cut(0), SerialRuntime(), models, tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize("size, fill", [(1, 0.0), (2, 0.9), (4, 0.5)])
def test_the_cut_of_the_requests_changes_no_weight(models, tmp_path, whole, size, fill):
    assert run(cut(size, fill), SerialRuntime(), models, tmp_path)[0] == whole
    lines = [json.loads(line.split("\t")[0]) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert any(line["event"] == "part" for line in lines) == (size < 4)


@pytest.mark.parametrize(
    "actors, placement",
    [
        pytest.param(1, "with_imagination", marks=pytest.mark.slow),
        pytest.param(2, "own", marks=pytest.mark.slow),
        (3, "with_imagination"),
    ],
)
def test_on_one_two_and_three_actors_the_weights_are_those_of_one_process(models, tmp_path, whole, actors, placement):
    start_here(num_cpus=4)
    try:
        assert run(cut(2, 0.9, actors, placement), RayRuntime(), models, tmp_path)[0] == whole
    finally:
        ray.shutdown()


def test_an_actor_drops_what_it_is_told_to_while_it_works(models):
    """The call is under way: it ends at its next chunk, and only it."""
    start_here(num_cpus=2)
    try:
        runtime, config = RayRuntime(), cut(0)
        folders = [str(models / name) for name in ("policy", "world-model", "reward-model")]
        actor = runtime.spawn(
            RolloutActor, config, *folders, None, resources=Resources(num_cpus=1), name="imagination-0"
        )
        runtime.get(_first(runtime, runtime.build(actor)))
        payload = WeightEncoder(load_policy(config, folders[0]), config.weights, set()).encode(0)[1]
        version = runtime.get(_first(runtime, runtime.call(actor, "load_weights", payload)))
        groups = tuple(GroupRequest(0, i, i, start, 64, 0) for i, start in enumerate(small_starts(8)))
        long, short = (
            RolloutRequest(number, groups[:count], version.num_updates, 1.0, version.digest)
            for number, count in ((1, 8), (2, 1))
        )
        refs = [runtime.call(actor, "rollout", request, num_returns=3)[0] for request in (long, short)]
        while not runtime.get(_first(runtime, runtime.beat(actor))).num_beats:
            time.sleep(0.01)
        runtime.tell(actor, "drop", 1, [group.key for group in groups])
        first, second = (runtime.get(_first(runtime, ref)) for ref in refs)
        assert first.is_dropped and first.scores is None
        assert not second.is_dropped and len(second.scores.success) == 64
    finally:
        ray.shutdown()


def _first(runtime: RayRuntime, ref):
    return runtime.wait([ref])[0]


# -- collecting --------------------------------------------------------------------------------------------------------


def scored(first: int, last: int, success: list[bool]) -> ScoredMembers:
    piece = Piece(GroupRequest(0, 0, 0, small_starts(1)[0], 4, 0), (first, last), (0, last - first))
    scores = Scores(np.array(success), np.full(last - first, 8), np.zeros(last - first, np.float32))
    return ScoredMembers.of(piece, scores, Handle(None, f"/spool/{first}", "00"))


def test_members_make_a_group_in_their_own_order_whatever_came_first():
    members, request = Members(), GroupRequest(0, 0, 0, small_starts(1)[0], 4, 0)
    assert members.take(request, scored(3, 4, [True])) is None
    assert members.take(request, scored(0, 2, [True, False])) is None
    assert members.holds(Piece(request, (3, 4), (0, 1))) and not members.holds(Piece(request, (2, 3), (0, 1)))
    whole = members.take(request, scored(2, 3, [False]))
    assert whole.members == (0, 4) and whole.success.tolist() == [True, False, False, True]
    assert [stored.trajectories.path for stored in whole.stored] == ["/spool/0", "/spool/2", "/spool/3"]
    assert not members.holds(Piece(request, (3, 4), (0, 1))), "what is whole is not kept"


def test_facts_in_the_ledger_lead_back_to_the_members(tmp_path):
    part = scored(0, 2, [True, False])
    again = ScoredMembers.read(json.loads(json.dumps(part.facts)), tmp_path)
    assert again.members == part.members and (again.success == part.success).all()
    assert again.stored == (Stored(Handle(None, str(tmp_path / "0"), "00"), (0, 2)),)
    before = {"success": [1, 0], "finish": [3, 8], "refuted": 0, "rows": [4, 6], "file": "a", "sha256": "1"}
    assert ScoredMembers.read(before, tmp_path).stored[0].rows == (4, 6), "as earlier versions wrote it"


def test_the_ledger_takes_members_of_groups_that_are_under_way_only(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(State.ISSUED, (0, 0))
    ledger.part((0, 0), members=[0, 2])
    with pytest.raises(LedgerError, match=r"members of group \(0, 1\) cannot be scored: it is unknown"):
        ledger.part((0, 1), members=[0, 2])
    ledger.append(State.REJECTED, (0, 0), verdict="surplus")
    with pytest.raises(LedgerError, match="it is rejected"):
        ledger.part((0, 0), members=[2, 4])
    ledger.close()
    assert Ledger.read(tmp_path / "ledger.jsonl").records[(0, 0)].facts["parts"] == [{"members": [0, 2]}]
