"""Training on recorded episodes through the loop: one learner, replaced where it is lost, resumed where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file

import learners.policy_learner
from cluster.host.connection import start_here
from cluster.loop.offline import Trained, train_offline
from cluster.loop.team import ModelPaths
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import ActorLostError, Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from learners.policy_learner import PolicyLearner
from tests.support.recorded import offline_config, recorded, save_tiny_policy
from tests.support.small_run import ListLog, small_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.data.store import save_episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a policy and recorded episodes."""
    folder = tmp_path_factory.mktemp("recorded")
    save_tiny_policy(offline_config("dpo"), folder / "policy")
    save_episodes(folder / "episodes.parquet", recorded())
    return folder


class RunLogOf(ListLog):
    """Also keeps what a restart puts back."""

    def restore(self, history: list[dict]) -> set[int]:
        self.restored = len(history)
        return set()


def run(config: Config, folder: Path, out: Path, runtime: Runtime | None = None, **options) -> tuple[Trained, RunLogOf]:
    nowhere = folder / "nowhere"  # an offline run has no actors that would read these
    paths = ModelPaths(folder / "policy", nowhere, None, nowhere, out / "checkpoints")
    log = RunLogOf()
    try:
        episodes = folder / "episodes.parquet"
        done = train_offline(config, runtime or SerialRuntime(), paths, [episodes], out / "policy", log, **options)
    finally:
        log.close()
    return done, log


@pytest.fixture(scope="module")
def serial(folder, tmp_path_factory) -> Trained:
    return run(offline_config("dpo"), folder, tmp_path_factory.mktemp("serial"))[0]


@pytest.mark.parametrize("kind", ["dpo", "filtered_bc"])
def test_a_run_trains_logs_every_update_and_leaves_a_policy(folder, tmp_path, kind):
    seen = []
    config = offline_config(kind)
    done, log = run(config, folder, tmp_path, progress=lambda update, metrics: seen.append(update))
    assert done.version.num_updates == 3 and done.resumed_from == done.num_restarts == 0
    assert seen == [line["update"] for line in log.lines] == [1, 2, 3]
    assert log.lines[-1]["policy/loss"] < log.lines[0]["policy/loss"]
    before, after = (load_file(path / "policy" / "model.safetensors") for path in (folder, tmp_path))
    assert any(not before[name].equal(after[name]) for name in before)
    assert [event["update"] for event in log.events if event["event"] == "update.metrics"] == [1, 2, 3]


def test_a_run_that_was_stopped_goes_on_with_the_same_weights(serial, folder, tmp_path):
    config = offline_config("dpo")

    def stop(update: int, metrics: dict[str, float]) -> None:
        if update == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, folder, tmp_path, progress=stop)
    done, log = run(config, folder, tmp_path)
    assert (done.version, done.resumed_from) == (serial.version, 2)
    assert [line["update"] for line in log.lines] == [3] and log.restored == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_learner_that_is_lost_is_replaced(serial, folder, tmp_path, monkeypatch, when):
    """Before its update, which is then trained by the next one; or after, when only the answer is lost."""
    lost = []

    class DoomedLearner(PolicyLearner):
        def update_recorded(self):
            dies = self.num_updates == 1 and not lost
            if dies:
                lost.append(when)
            if dies and when == "before":
                raise ActorLostError("lost")
            result = super().update_recorded()
            if dies:
                raise ActorLostError("lost")
            return result

    monkeypatch.setattr(learners.policy_learner, "PolicyLearner", DoomedLearner)
    done, log = run(offline_config("dpo"), folder, tmp_path)
    assert lost == [when] and done.num_restarts == 1 and done.version == serial.version
    assert [line["update"] for line in log.lines] == [1, 2, 3]


def test_mistakes_end_the_run_with_their_own_message(folder, tmp_path):
    with pytest.raises(ConfigError, match=r'algorithm.kind = "grpo" learns from rollouts, not from recorded episodes'):
        run(small_config(), folder, tmp_path)
    failed = tmp_path / "failed"
    (failed / "policy").parent.mkdir()
    (failed / "policy").symlink_to(folder / "policy")
    save_episodes(failed / "episodes.parquet", recorded().rows(slice(6, None)))
    with pytest.raises(UserError, match="none of the 6 recorded episodes succeeded"):
        run(offline_config("filtered_bc"), failed, tmp_path)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_on_ray_only_the_learner_has_a_place(serial, folder, tmp_path, ranks):
    """Models of other roles are nowhere, and there is no room for their actors."""
    start_here(num_cpus=1)
    try:
        config = offline_config("dpo")
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"learner_ranks": ranks})})
        done, log = run(config, folder, tmp_path, RayRuntime())
    finally:
        ray.shutdown()
    if ranks == 1:
        assert done.version == serial.version
    else:
        assert log.lines[-1]["policy/loss"] < log.lines[0]["policy/loss"]
