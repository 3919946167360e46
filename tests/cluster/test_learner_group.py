"""A learner in two processes on Ray: a rank that dies takes the whole learner along, and it comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from cluster.host.connection import start_here
from cluster.recipes.pipeline import run_pipeline
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import ActorLostError
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.placement import PlacementBook, bundle_of, bundles_for, check_placement, smallest_bundles
from learners.policy_learner import PolicyLearner
from tests.support.learner_groups import FACTS, groups, sample
from tests.support.rank_scenarios import run_on_ranks
from tests.support.sabotage import recast
from tests.support.small_run import SETTINGS, finish, make_loop, save_models, small_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError

TIMEOUT_S = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


@pytest.fixture(scope="module")
def runtime():
    start_here(num_cpus=4)
    yield RayRuntime()
    ray.shutdown()


def two_ranks(**grpo) -> Config:
    return Config.model_validate(
        {**SETTINGS, "cluster": {"learner_ranks": 2}, "grpo": {**SETTINGS["grpo"], "minibatch_trajectories": 4, **grpo}}
    )


def doomed_learner(marker: Path) -> type:
    # Made inside a function: it travels to the workers by value, with the path.
    class DoomedLearner(PolicyLearner):
        def take_step(self, minibatch):
            if self.ranks.rank == 1 and self.num_updates == 1 and minibatch.first and marker.exists():
                marker.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().take_step(minibatch)

    return DoomedLearner


def two_updates(ranks, models: Path, folder: Path) -> str:
    """What two ranks come to if nothing happens to them."""
    learner = PolicyLearner(two_ranks(), str(models / "policy"), str(folder), ranks)
    learner.resume()
    alone = PolicyLearner(two_ranks(), str(models / "policy"), str(folder / "unused"))
    return [learner.update(groups(), FACTS, sample(alone, seed=i))[0].version.digest for i in range(2)][-1]


def test_a_group_of_ranks_ends_with_any_of_them_and_comes_back_to_the_same_weights(runtime, models, tmp_path):
    config = two_ranks()
    (tmp_path / "marker").touch()
    batches = [
        sample(PolicyLearner(config, str(models / "policy"), str(tmp_path / "unused")), seed=i) for i in range(2)
    ]
    args = (config, doomed_learner(tmp_path / "marker"), str(models / "policy"), str(tmp_path / "checkpoints"))

    def start():
        group = runtime.spawn(LearnerGroup, *args, [Resources(0.2)], resources=Resources(0.2), name="learner-0")
        runtime.build(group)
        return group

    def call(group, method, *arguments, num_returns=1):
        answer = runtime.call(group, method, *arguments, num_returns=num_returns)
        first = answer[0] if num_returns > 1 else answer
        assert runtime.wait([first], TIMEOUT_S)
        return runtime.get(first)

    group = start()
    fresh = call(group, "resume").version
    first = call(group, "update", groups(), FACTS, runtime.put(batches[0]), num_returns=3).version
    assert first.digest != fresh.digest and runtime.get(runtime.beat(group)).num_beats == 2
    with pytest.raises(ActorLostError, match="rank 1 of the learner's 2 was lost"):
        call(group, "update", groups(), FACTS, runtime.put(batches[1]), num_returns=3)
    runtime.kill(group)

    group = start()
    assert call(group, "resume").version == first
    result = call(group, "update", groups(), FACTS, runtime.put(batches[1]), num_returns=3)
    undisturbed, _ = run_on_ranks(2, two_updates, models, tmp_path / "undisturbed")
    assert result.version.digest == undisturbed
    assert call(group, "weights", 2, num_returns=2).digest == undisturbed
    call(group, "save_policy", str(tmp_path / "policy"))
    assert (
        PolicyLearner(small_config(), str(tmp_path / "policy"), str(tmp_path / "none")).resume().version.digest
        == undisturbed
    )
    runtime.kill(group)


@pytest.mark.slow
def test_a_run_with_two_ranks_survives_the_death_of_one(runtime, models, tmp_path, monkeypatch):
    def play(folder: Path) -> str:
        loop, _ = make_loop(two_ranks(), runtime, models, folder)
        digest = finish(loop, folder)
        restarts.append(loop.team.num_restarts)
        return digest

    restarts: list[int] = []
    undisturbed = play(tmp_path / "undisturbed")
    (tmp_path / "marker").touch()
    classes = {"PolicyLearner": doomed_learner(tmp_path / "marker")}
    monkeypatch.setattr("cluster.loop.team.actor_class", recast(classes))
    assert play(tmp_path / "disturbed") == undisturbed
    assert restarts == [0, 1]


def test_one_process_has_one_rank(models, tmp_path):
    with pytest.raises(UserError, match=r"cluster\.learner_ranks=2: --serial"):
        make_loop(two_ranks(), SerialRuntime(), models, tmp_path)


# -- the layout --------------------------------------------------------------------------------------------------------


def placed(layout: str, **cluster) -> Config:
    learner = {"cpus": 1, "gpus": 1 if layout == "separate" else 0.4}
    roles = {"imagination": {"cpus": 1, "gpus": 0.5}, "learner": learner}
    return Config.model_validate({"cluster": cluster, "placement": {"layout": layout, **roles}})


def test_ranks_have_a_share_each_of_one_reservation():
    class Held:
        def __init__(self, bundle):
            self.place, self.bundle, self.released = ("group", 0), bundle, False

        def release(self):
            self.released = True

    made = []
    config = placed("separate", learner_ranks=3, imagination_actors=1)
    book = PlacementBook(config, lambda bundle: made.append(Held(bundle)) or made[-1])
    assert [book.place("learner", rank).bundle for rank in range(3)] == [("group", 0), ("group", 1), ("group", 2)]
    assert len(made) == 1 and made[0].bundle.siblings == 3
    for rank in range(3):
        assert not made[0].released
        book.release("learner", rank)
    assert made[0].released
    assert [bundle.name for bundle in bundles_for(config, {"imagination": 1, "reward": 0})][:3] == [
        "learner-0",
        "learner-1",
        "learner-2",
    ]
    with pytest.raises(UserError, match=r"ask for 3\.5 GPUs \(.*3 learner x 1"):
        check_placement(config, {"CPU": 99, "GPU": 3.0})


def test_collocated_ranks_stand_with_the_imagination_workers():
    config = placed("collocated", learner_ranks=3, imagination_actors=2, reward_actors=1)
    names = [bundle.name for bundle in smallest_bundles(config)]
    assert names == ["imagination-0+reward-0+learner-0", "imagination-1+learner-1", "learner-2"]
    assert bundle_of(config, "learner", 2).siblings == 1


@pytest.mark.parametrize(
    ("serial", "cluster", "message"),
    [
        (True, {"learner_ranks": 2}, "cluster.learner_ranks=2: --serial has one process"),
        (False, {"training_workers": [1, 900], "imagination_actors": 1}, "batch_size=.* is less than the 900 workers"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(tmp_path, serial, cluster, message):
    with pytest.raises(UserError, match=message):
        run_pipeline(Config.model_validate({"cluster": cluster}), tmp_path / "run", serial=serial)
    assert not (tmp_path / "run").exists()
