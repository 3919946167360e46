"""A simulator in another process: its episodes are those that it would have here, and no step is made twice."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support.documents import ROOT
from tests.support.implementations import environment_section, random_actions
from tests.support.remote_servers import TOKEN, pocket_address, serve_environment
from wmpo_client.arrays import to_array
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError
from wmpo_client.scenes import Scenes
from wmpo_client.serving import scene_table
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.environments.remote import remote_environment
from wmpo_ray.environments.remote.remote_settings import RemoteConfig
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert


@pytest.fixture(scope="module")
def other_process():
    """The address of `wmpo simulator`, as a person starts it."""
    command = [sys.executable, "-m", "wmpo_ray", "simulator", "smoke", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}) as simulator:
        try:
            yield simulator.stdout.readline().split()[-1]
        finally:
            simulator.terminate()
            assert simulator.wait(20) == 0


def same(one, other) -> bool:
    return (
        np.array_equal(np.asarray(one.frames[:]), np.asarray(other.frames[:]))
        and np.array_equal(one.actions, other.actions)
        and np.array_equal(one.lengths, other.lengths)
        and np.array_equal(one.success, other.success)
        and one.instructions == other.instructions
        and all(np.array_equal(one.failures[name], flags) for name, flags in other.failures.items())
    )


def test_episodes_of_an_expert_in_another_process_are_those_made_here(other_process):
    remote = make_environment(RemoteConfig(address=other_process, instructions=INSTRUCTIONS))
    seeds = start_seeds("demos", 12, 3)
    episodes = [rollout_expert(each, seeds, 3.0, (3, "demos")) for each in (remote, PocketEnvironment())]
    assert same(*episodes) and episodes[0].success.any() and not episodes[0].success.all()


@pytest.mark.parametrize("frames", ["all", "last", "none"])
@pytest.mark.parametrize("bound", [2**26, 1])  # 1: the frames of a chunk are too many, and asked for step by step
def test_a_chunk_does_what_its_steps_do(frames, bound, monkeypatch):
    monkeypatch.setattr(remote_environment, "MAX_CHUNK_BYTES", bound)
    worlds = [
        EnvironmentWorld(make_environment(environment_section(kind, horizon=8)), 4) for kind in ("remote", "pocket")
    ]
    found = []
    for world in worlds:
        state, _ = world.start(seeded_starts([1, 2, 3]))
        ended = []
        for chunk in range(2):
            state, transition = world.step_chunk(state, random_actions(3, 4, chunk), [0] * 3, frames)
            ended.append(transition)
        found.append(ended)
    for one, other in zip(*found, strict=True):
        for name in ("frames", "done", "success", "num_steps"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert (one.observation is None) == (frames == "none")
        if one.observation is not None:
            assert np.array_equal(one.observation.frames, other.observation.frames)


def test_a_step_that_is_asked_twice_is_made_once():
    with serve_environment(lambda: PocketEnvironment(8)) as served:
        connection = served.connection()
        stub = rpc.EnvironmentsStub(connection.channel)
        starts = [pb.StartState(seed=1, has_seed=True)]
        reset = pb.SceneResetRequest(scene="a", generation=1, starts=starts)
        first = connection.call(stub.Reset, reset, 10)
        step = pb.SceneStepRequest(
            scene="a", generation=1, sequence=0, actions=to_array(np.full((1, 2, 3), 0.5, np.float32)), frames=pb.ALL
        )
        made = [connection.call(stub.Step, step, 10) for _ in range(3)]
        assert made[0] == made[1] == made[2] and made[0].sequence == 2
        with pytest.raises(Exception, match="at step 2 after reset 1"):
            connection.call(stub.Reset, reset, 10)  # late: the scene has gone on since
        again = pb.SceneResetRequest(scene="a", generation=2, starts=starts)
        assert connection.call(stub.Reset, again, 10) == first


def test_a_simulator_that_begins_anew_is_brought_to_where_it_was():
    """In the middle of episodes of an expert, who remembers what it was about, and of single actions."""
    served, rngs = serve_environment(lambda: PocketEnvironment(16)), [np.random.default_rng(5) for _ in range(2)]
    scenes, here = Scenes(served.connection()), PocketEnvironment(16)
    scenes.reset(seeded_starts([1, 2, 3]))
    here.reset([1, 2, 3])
    for turn in range(4):
        scenes.step_expert(rngs[0], 0.1, 2, 3)
        for _ in range(2):
            here.advance(here.expert_action(rngs[1], 0.1))
        chosen = scenes.choose_as_expert(rngs[0], 0.1)
        assert np.array_equal(chosen, here.expert_action(rngs[1], 0.1))
        listen = served.target
        served.stop()
        served = serve_environment(lambda: PocketEnvironment(16), listen=listen)
        if turn % 2:
            assert np.array_equal(scenes.observe().images["main"], here.render())
        scenes.step(chosen[:, None])
        here.advance(chosen)
        assert np.array_equal(scenes.terminated, here.terminated)
    assert np.array_equal(scenes.observe().images["main"], here.render()) and scenes.num_losses == 4
    assert np.array_equal(scenes.read("positions")["block"], here.positions()["block"])
    served.stop()


def test_a_simulator_that_loses_its_scenes_every_time_or_does_not_repeat_itself_is_given_up(monkeypatch):
    class Forgetful(PocketEnvironment):
        num = 0

        def restore(self, starts):
            super().restore(starts)
            Forgetful.num += 1
            self.success |= Forgetful.num > 1

    with serve_environment(lambda: Forgetful(8)) as served:
        scenes = Scenes(served.connection(), patience_s=0.1)
        scenes.reset(seeded_starts([1]))
        lost = scene_table.SceneTable.find

        def forget(table, name):
            if name in table._scenes:
                table.close()
            return lost(table, name)

        monkeypatch.setattr(scene_table.SceneTable, "find", forget)
        with pytest.raises(ClientError, match="NOT_FOUND"):
            scenes.observe()
        monkeypatch.undo()
        with pytest.raises(ClientError, match="it does not repeat itself, or is another one"):
            scenes.observe()


def test_scenes_of_a_simulator_that_began_anew_are_not_taken_for_others():
    with serve_environment(lambda: PocketEnvironment(8)) as served:
        scenes = Scenes(served.connection(), patience_s=0.1)
        with pytest.raises(ClientError, match="NOT_FOUND.*it has to be reset"):
            scenes.observe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 16}, r"environment.horizon = 16, and the simulator at .* has 8"),
        ({"action_dim": 7}, "environment.action_dim = 7"),
        ({"frame_size": 32}, "environment.frame_size"),
        ({"instructions": ("fold the towel",)}, "environment.instructions"),
        ({"address": "127.0.0.1:1", "patience_s": 0.1}, "UNAVAILABLE"),
        ({"address": "192.0.2.1:80"}, "is not on this machine, and without TLS"),
        ({"ca": "/nowhere/ca.crt"}, "No such file"),
    ],
)
def test_another_simulator_than_the_settings_say_is_refused(settings, message):
    own = {"address": pocket_address(8), "horizon": 8, "instructions": INSTRUCTIONS, **settings}
    with pytest.raises(ConfigError, match=message):
        make_environment(RemoteConfig.model_validate(own))


@pytest.mark.parametrize("address", ["", "localhost", "a:b", ":1"])
def test_an_address_names_host_and_port(address):
    with pytest.raises(ValueError, match="it must be HOST:PORT"):
        RemoteConfig(address=address)


def test_more_scenes_than_there_is_room_for_are_refused(monkeypatch):
    with serve_environment(lambda: PocketEnvironment(8)) as served:
        connection = served.connection()
        stub = rpc.EnvironmentsStub(connection.channel)
        for index in range(64):
            connection.call(stub.Reset, pb.SceneResetRequest(scene=f"s{index}", generation=1), 10)
        with pytest.raises(Exception, match="64 scenes are in use"):
            connection.call(stub.Reset, pb.SceneResetRequest(scene="one more", generation=1), 10)
    assert TOKEN
