"""Spare processes, on a real Ray: the next actor begins in one, another takes its place, and none outlives the job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.host.connection import start_here
from cluster.host.ray_private import NodeManager
from cluster.runtimes import spares as spares_module
from cluster.runtimes.preload import MODULES, preload
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.spares import Spares, libraries_of, make_spares
from cluster.workers.placement import Bundle, Reservation
from wmpo_ray.config.loading import load_config

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
def spares(actors) -> Iterator[Spares]:
    spares = Spares(1, [MARK])
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


def test_the_next_actor_begins_in_the_spare_and_another_one_comes(actors, spares):
    first, (_, was_preloaded, _) = actors.start()
    assert was_preloaded and not idle()
    spares.begin()
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


def test_preloading_asks_for_no_gpu_and_leaves_no_package_to_import(tmp_path):
    """An answer would be kept, and a spare learns only later which GPU it gets."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
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
from tests.support.small_run import save_models, small_config
config, folder = small_config(device="cpu"), Path(sys.argv[1])
os.environ[{MODULES!r}] = ",".join(libraries_of(config))
preload()
print(asked)
before = {{name.partition(".")[0] for name in sys.modules}}
from actors.rollout_actor import RolloutActor
from learners.policy_learner import PolicyLearner
save_models(folder, config)
RolloutActor(config, str(folder / "policy"), str(folder / "world-model"))
PolicyLearner(config, str(folder / "policy"), str(folder / "checkpoints"))
large = [name for name in sys.modules if name.count(".") == 0 and name not in before and hasattr(sys.modules[name], "__path__")]
print(large)
"""
