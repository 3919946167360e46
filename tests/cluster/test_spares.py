"""Spare processes, on a real Ray: the next actor begins in one, another takes its place, and none outlives the job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.rollout_actor import RolloutActor
from cluster.host.connection import start_here
from cluster.host.ray_private import NodeManager
from cluster.runtimes import spares as spares_module
from cluster.runtimes.preload import MODELS, MODULES, preload
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.spares import MODELS_FILE, Spares, libraries_of, make_spares, models_of
from cluster.workers.placement import Bundle, Reservation
from tests.support.small_run import model_paths, save_models, small_config
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.model_files import held_models
from wmpo_ray.policies.weight_payload import weights_digest

PATIENCE_S = 120.0  # a machine that others keep busy starts processes slowly
MARK = "imaplib"  # a module that no worker imports by itself


class Looker:
    """Says what its process was before it."""

    def look(self) -> tuple[int, bool, str]:
        return os.getpid(), MARK in sys.modules, os.environ.get("CUDA_VISIBLE_DEVICES", "none")


class Actors:
    def __init__(self, runtime: RayRuntime):
        self.runtime = runtime

    def get(self, ref: Any) -> Any:
        assert self.runtime.wait([ref], PATIENCE_S), "no answer"
        return self.runtime.get(ref)

    def start(self, **resources: Any) -> tuple[Any, tuple[int, bool, str]]:
        actor = self.runtime.spawn(Looker, resources=Resources(**resources), name="looker")
        return actor, self.get(self.runtime.call(actor, "look"))


@pytest.fixture(scope="module")
def actors() -> Iterator[Actors]:
    start_here(num_cpus=2, num_gpus=1)
    yield Actors(RayRuntime())
    ray.shutdown()


@pytest.fixture
def spares(actors, tmp_path) -> Iterator[Spares]:
    spares = Spares(1, [MARK], "{}", tmp_path / MODELS_FILE)
    actors.runtime.keep_spares(spares)
    yield spares
    actors.runtime.keep_spares(None)


def idle() -> set[int]:
    """Process ids of the spares of this job on the only node."""
    (node,) = ray.nodes()
    manager = NodeManager(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    try:
        return set(manager.idle_workers(bytes.fromhex(ray.get_runtime_context().get_job_id())))
    finally:
        manager.close()


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
    return value


@pytest.mark.slow
def test_the_next_actor_begins_in_the_spare_and_another_one_comes(actors, spares, tmp_path):
    first, (_, was_preloaded, _) = actors.start()
    assert was_preloaded and not idle() and not (tmp_path / MODELS_FILE).exists()
    spares.begin()
    assert (tmp_path / MODELS_FILE).read_text() == "{}"
    (waiting,) = wait_for(idle)
    actors.runtime.kill(first)
    second, (pid, was_preloaded, gpus) = actors.start()
    assert pid == waiting and was_preloaded and gpus == ""
    (other,) = wait_for(idle)
    assert other != waiting
    time.sleep(3)  # several looks later it is still one
    assert idle() == {other}

    # Its share of a node is that of the actor, with the GPU that Ray has set aside for it.
    reservation = Reservation(Bundle("looker-0", (("looker", 0),), 0.5, 1.0))
    third, (pid, _, gpus) = actors.start(num_cpus=0.5, num_gpus=1.0, bundle=reservation.place)
    assert pid == other and gpus == "0"
    wait_for(idle)
    for actor in (second, third):
        actors.runtime.kill(actor)
    reservation.release()

    spares.stop()
    assert not (tmp_path / MODELS_FILE).exists()
    fourth, _ = actors.start()
    time.sleep(3)
    assert not idle()
    actors.runtime.kill(fourth)


def test_a_spare_is_no_load_and_no_actor(actors, spares):
    actor, _ = actors.start()
    before = ray.available_resources()
    spares.begin()
    wait_for(idle)
    assert ray.available_resources() == pytest.approx(before, rel=0.2)
    assert ray.available_resources()["CPU"] == before["CPU"] and ray.available_resources()["GPU"] == before["GPU"]
    actors.runtime.kill(actor)


def test_actors_with_packages_of_their_own_are_left_alone(actors, spares):
    own = {"env_vars": {"OWN": "1"}}
    actor, (_, was_preloaded, _) = actors.start(runtime_env=own)
    assert not was_preloaded
    actors.runtime.kill(actor)


def test_a_job_with_a_hook_of_its_own_keeps_it(actors, monkeypatch):
    config = load_config("smoke", ["cluster.spares=1"])
    assert make_spares(config) is not None
    monkeypatch.setattr(spares_module, "has_setup_hook", lambda: True)
    assert make_spares(config) is None


def test_a_library_that_is_not_there_is_left_to_the_actor(monkeypatch):
    monkeypatch.setenv(MODULES, "no_such_module,json")
    preload()
    monkeypatch.setenv(MODULES, "")
    preload()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


def loading(models: Path, **settings) -> tuple[Config, str]:
    """A configuration whose spares load models, and what they are told."""
    config = small_config(device="cpu", spares_load_models=True, **settings)
    return config, models_of(config, model_paths(models, models / "checkpoints").by_name)


def test_an_actor_takes_the_models_that_its_process_has_loaded(models, tmp_path, monkeypatch):
    config, told = loading(models)
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setenv(MODELS, str(tmp_path / MODELS_FILE))
    preload()
    assert not held_models._held, "the first actors serve before there are spares"
    (tmp_path / MODELS_FILE).write_text(told)
    folders = [str(models / name) for name in ("policy", "world-model")]
    fresh = RolloutActor(config, *folders)
    preload()
    held = {kind: each.model for (kind, _), each in held_models._held.items()}
    assert set(held) == {"policy", "world_model"}, "imagination judges nothing here"
    actor = RolloutActor(config, *folders)
    assert actor.policy is held["policy"] and actor.world is held["world_model"]
    assert not held_models._held, "nobody else is given what this one may change"
    pairs = [(fresh.policy, actor.policy), (fresh.world.denoiser.network, actor.world.denoiser.network)]
    assert all(weights_digest(a.state_dict()) == weights_digest(b.state_dict()) for a, b in pairs)
    assert not any(part.training for pair in pairs for part in pair)


def test_a_model_of_other_settings_files_or_devices_is_loaded_anew(models, tmp_path, monkeypatch):
    config, told = loading(models)
    folder, cpu = str(models / "policy"), torch.device("cpu")
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setenv(MODELS, str(tmp_path / MODELS_FILE))
    (tmp_path / MODELS_FILE).write_text(told)
    preload()
    assert held_models.take("policy", loading(models, threads_per_process=2)[0], folder, cpu) is None
    preload()
    assert held_models.take("policy", config, folder, torch.device("meta")) is None
    preload()
    os.utime(next(Path(folder).glob("*.safetensors")), ns=(1, 1))
    assert held_models.take("policy", config, folder, cpu) is None
    preload()
    held_models.let_go()
    assert held_models.take("policy", config, folder, cpu) is None


def test_spares_of_actors_with_a_gpu_only_read_the_files(models, tmp_path, monkeypatch):
    config = Config.model_validate(
        {"cluster": {"spares_load_models": True}, "placement": {"imagination": {"gpus": 1}, "reward": {"gpus": 1}}}
    )
    told = models_of(config, model_paths(models, models).by_name)
    assert not json.loads(told)["build"] and loading(models)[1] != told
    (tmp_path / MODELS_FILE).write_text(told)
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setenv(MODELS, str(tmp_path / MODELS_FILE))
    preload()
    assert not held_models._held
    assert models_of(small_config(), model_paths(models, models).by_name) == ""


def test_preloading_asks_for_no_gpu_and_leaves_no_package_to_import(models, tmp_path):
    """An answer would be kept, and a spare learns only later which GPU it gets."""
    (tmp_path / MODELS_FILE).write_text(loading(models)[1])
    command = [sys.executable, "-c", PROGRAM, str(models), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    asked, new = done.stdout.splitlines()[-2:]
    assert asked == "[]"
    assert new == "[]"


def test_the_libraries_of_every_preset_exist():
    from importlib.util import find_spec

    for preset in ("demo", "smoke", "perfect-world"):
        assert all(find_spec(name) for name in libraries_of(load_config(preset)))


PROGRAM = f"""
import os, sys, torch
from pathlib import Path
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "get_device_properties"):
    setattr(torch.cuda, name, lambda *args, name=name: asked.append(name))
from cluster.runtimes import spares as spares_module
from cluster.runtimes.preload import preload
from cluster.runtimes.spares import libraries_of
from tests.support.small_run import small_config
config = small_config(device="cpu", spares_load_models=True)
models, folder = Path(sys.argv[1]), Path(sys.argv[2])
os.environ[{MODULES!r}] = ",".join(libraries_of(config))
os.environ[{MODELS!r}] = str(folder / {MODELS_FILE!r})
preload()
print(asked)
before = {{name.partition(".")[0] for name in sys.modules}}
from actors.rollout_actor import RolloutActor
from learners.policy_learner import PolicyLearner
RolloutActor(config, str(models / "policy"), str(models / "world-model"))
PolicyLearner(config, str(models / "policy"), str(folder / "checkpoints"))
large = [name for name in sys.modules if name.count(".") == 0 and name not in before and hasattr(sys.modules[name], "__path__")]
print(large)
"""
