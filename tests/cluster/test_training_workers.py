"""The supervised stages on workers of Ray Train leave what they leave in one process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file

from cluster.events.progress import Reporter
from cluster.recipes.clone import POLICY
from cluster.recipes.context import RunContext
from cluster.recipes.trainings import has_workers
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.simulation.doors import find_listeners
from learners.supervised.cloning import PolicyCloner
from learners.supervised.jobs import CloningJob, Training
from learners.supervised.loop import SupervisedTraining, WorkerShare
from tests.support.recorded_stages import STAGES, record
from tests.support.small_run import SETTINGS, ListLog
from tests.support.stored_episodes import sound
from wmpo_ray.config.cluster import Size
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.data import store as trajectory_store
from wmpo_ray.data.data_set import UNFINISHED, load_data, part_writer
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

STEPS, EVERY = 8, 3
SETTINGS_OF_STAGES = {
    **SETTINGS,
    "environment": {"horizon": 24},
    "policy": {**SETTINGS["policy"], "cloning": {"steps": STEPS, "batch_size": 5}},
    "world_model": {
        **SETTINGS["world_model"],
        "pretrained": "",
        "alignment": {"steps": STEPS, "batch_size": 5, "warmup_steps": 2},
    },
    "reward": {**SETTINGS["reward"], "steps": STEPS, "batch_size": 10},
    "checkpoint": {"every_training_steps": EVERY},
    "faults": {"max_start_failures": 2},
}
SAVED = {
    "policy": "base-policy/model.safetensors",
    "world-model": "world-model/diffusion_pytorch_model.safetensors",
    "reward-model": "reward-model/model.safetensors",
}
BYTES_OF_FIVE = 5 * 25 * 16 * 16 * 3  # episodes
POLL_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def config_for(training_workers: Size) -> Config:
    return Config.model_validate({**SETTINGS_OF_STAGES, "cluster": {"training_workers": training_workers}})


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.ray_train.training_data.BLOCK_BYTES", BYTES_OF_FIVE)
        patch.setenv(POLL_S, "0.2")  # how often Ray Train looks; it tells its processes
        runtime = RayRuntime()
        yield runtime
        runtime.shutdown()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A run in one process with all three stages done; its trajectories are in several row groups."""
    path = tmp_path_factory.mktemp("runs") / "one"
    with (
        pytest.MonkeyPatch.context() as patch,
        RunFolder.open(path, config_for(1)) as folder,
    ):
        patch.setattr(trajectory_store, "ROW_GROUP_BYTES", BYTES_OF_FIVE)
        record(folder)
        context = RunContext(config_for(1), folder, Reporter(), SerialRuntime, force=False)
        for name, stage in STAGES.items():
            folder.finish(name, 1.0, stage.run(context))
    return path


@dataclass
class Course:
    """A stage of a run of its own that begins with what `recorded` holds."""

    folder: RunFolder
    context: RunContext
    shown: list[int]  # how far the bars came

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder.models / SAVED[name])


def begin(recorded: Path, path: Path, config: Config, runtime: Runtime, without: str) -> Course:
    shutil.copytree(recorded / "trajectories", path / "trajectories")
    (path / "models").mkdir()
    if without == "reward-model":
        shutil.copytree(recorded / "models" / "world-model", path / "models" / "world-model")
    shown: list[int] = []
    reporter = Reporter(on_progress=lambda done, total, metrics: shown.append(done))
    (path / "config.json").write_text(config.model_dump_json())
    folder = RunFolder.open(path, config)
    return Course(folder, RunContext(config, folder, reporter, lambda: runtime, force=False), shown)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    distances = torch.cat([(one[name] - tensor).abs().flatten() for name, tensor in other.items()])
    # Adam makes of a rounding error in a gradient near 0 a step of up to the learning rate.
    assert float(distances.max()) < 2e-3 and float(distances.mean()) < 2e-6


# How each training shares its batches is tested without Ray; here one is enough, the others come before a release.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "world-model")) for n in STAGES])
def test_two_workers_leave_the_model_of_one_process(runtime, recorded, tmp_path, leftovers, name):
    course = begin(recorded, tmp_path, config_for(2), runtime, without=name)
    with course.folder:
        assert has_workers(course.context)
        metrics = STAGES[name].run(course.context)
        assert_close(course.weights(name), load_file(recorded / "models" / SAVED[name]))
        assert metrics.keys() == RunFolder(recorded).metrics(name).keys()
        saved = course.context.training_checkpoints(name)
        assert sorted(path.name for path in saved.glob("step-*")) == ["step-000003", "step-000006"]
        assert course.shown[0] == 0 and course.shown[-1] == STEPS
        assert JsonlTracker.read(tmp_path, name)[-1]["step"] == STEPS
        kept = {path.name for path in course.context.checkpoints.iterdir()}
        assert kept == {name}, "what Ray Train keeps of a training goes with its folder"
    assert not (Path.home() / "ray_results").exists()
    assert not leftovers.remaining(5.0, "TrainController")


@dataclass(frozen=True)
class MortalJob:
    """Its second worker is killed after a step, once. Each tells where it listens beyond this machine."""

    job: CloningJob
    step: int
    marker: Path

    @property
    def num_steps(self) -> int:
        return self.job.num_steps

    def begin(self, share: WorkerShare, device: torch.device) -> PolicyCloner:
        training = self.job.begin(share, device)
        update = training.update

        def report(loss: float) -> dict[str, float]:
            listeners = list(find_listeners({os.getpid()}))
            beyond = [listener for listener in listeners if not listener.is_loopback]
            self.marker.with_name(f"doors-{share.rank}").write_text(f"{len(listeners) > 0} {beyond}")
            if training.num_steps + 1 == self.step and share.rank == 1 and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return update(loss)

        training.update = report
        return training

    def measure_before(self, training: SupervisedTraining) -> None:
        self.job.measure_before(training)

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        return self.job.finish(training, seconds)


@dataclass(frozen=True)
class RefusingJob:
    num_steps: int = 1

    def begin(self, share: WorkerShare, device: torch.device) -> PolicyCloner:
        raise UserError("the demonstrations have no actions")


@pytest.mark.slow
def test_a_training_that_fails_says_why_and_ends_its_processes(runtime, recorded, tmp_path, leftovers):
    from cluster.ray_train.trainer import train_on_workers
    from cluster.ray_train.training_data import TrainingData

    config = Config.model_validate({**SETTINGS_OF_STAGES, "faults": {"max_start_failures": 1}})
    course = begin(recorded, tmp_path, config, runtime, without="policy")
    job: Any = RefusingJob()
    training = Training("policy", "behaviour cloning", "policy.cloning", config.policy.cloning, "learner", job)
    folder = course.context.training_checkpoints("policy")
    with course.folder, pytest.raises(UserError, match="the demonstrations have no actions"):
        train_on_workers(config, training, TrainingData(), folder, Reporter(), course.context.curve("policy", 1))
    assert not leftovers.remaining(10.0, "TrainController") and not leftovers.remaining(10.0, "RayTrainWorker")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, (1, 2)], ids=["fixed", "elastic"])
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(runtime, recorded, tmp_path, size):
    from cluster.ray_train.trainer import train_on_workers
    from cluster.ray_train.training_data import TrainingData

    config, data = config_for(size), TrainingData()
    course = begin(recorded, tmp_path, config, runtime, without="policy")
    demos = data.read("demos", course.folder.trajectories / "demos.parquet")
    job = CloningJob(config, demos, course.folder.models / "base-policy")
    mortal = MortalJob(job, STEPS - 1, tmp_path / "killed")
    training = Training("policy", "behaviour cloning", "policy.cloning", config.policy.cloning, "learner", mortal)
    log = ListLog()
    with course.folder:
        checkpoints = course.context.training_checkpoints("policy")
        train_on_workers(
            config, training, data, checkpoints, course.context.reporter, course.context.curve("policy", STEPS)
        )
    log.close()
    assert (tmp_path / "killed").exists()
    assert any("resuming from step 6" in text for text in log.told)
    assert [(tmp_path / f"doors-{rank}").read_text() for rank in range(2)] == ["True []", "True []"]
    assert_close(course.weights("policy"), load_file(recorded / "models" / SAVED["policy"]))


def test_without_ray_and_with_one_worker_there_is_no_ray_train(recorded, tmp_path):
    course = begin(recorded, tmp_path, config_for(2), SerialRuntime(), without="policy")
    with course.folder:
        POLICY.run(course.context)
    weights, expected = course.weights("policy"), load_file(recorded / "models" / SAVED["policy"])
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"cluster": {"training_workers": (1, 9)}}, "policy.cloning.batch_size=5 is less than the 9 workers"),
        (
            {"cluster": {"training_workers": 4}, "placement": {"learner": {"cpus": 1000.0}}},
            "4 training workers need 4000 CPUs .placement.learner.cpus=1000.*lower cluster.training_workers=4",
        ),
    ],
)
def test_workers_that_can_never_work_are_refused_before_any_is_started(runtime, recorded, tmp_path, settings, problem):
    config = Config.model_validate({**SETTINGS_OF_STAGES, **settings})
    course = begin(recorded, tmp_path, config, runtime, without="policy")
    with course.folder, pytest.raises((ConfigError, UserError), match=problem):
        POLICY.run(course.context)


def test_ray_data_reads_a_folder_of_trajectory_files(runtime, tmp_path):
    for seed in range(2):
        with part_writer(tmp_path / "set") as writer:
            writer.append(sound(seed=seed))
    (tmp_path / "set" / UNFINISHED / "part.parquet").write_bytes(b"half of a file")
    found = ray.data.read_parquet(str(tmp_path / "set")).take_all()
    expected = load_data(tmp_path / "set")
    assert sorted(row["seed"] for row in found) == sorted(expected.seeds.tolist())
    for row in found:
        (i,) = np.flatnonzero(expected.seeds == row["seed"])
        video = expected.frames[i, : row["length"] + 1]
        assert pa.decompress(row["frames"], video.nbytes, "zstd").to_pybytes() == video.tobytes()
        assert row["actions"] == expected.actions[i].tobytes() and row["instruction"] == expected.instructions[i]
