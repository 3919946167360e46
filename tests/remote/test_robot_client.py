"""The robot's own side: chunks in time, and the whole loop of acting and recording."""

from __future__ import annotations

import errno
import queue
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.motors import WIDE, Motors
from tests.support.remote_servers import serve_environment
from tests.support.robot_recordings import view
from wmpo_client.broker import ChunkBroker, blended
from wmpo_client.drive import DriveOptions, Robot, drive
from wmpo_client.episode_file import EpisodeFileWriter
from wmpo_client.episode_recorder import EpisodeRecorder
from wmpo_client.episode_spool import Spool
from wmpo_client.operator_keys import OperatorKeys
from wmpo_client.refusals import ClientError
from wmpo_client.safety import SafeRobot
from wmpo_client.scenes import Scenes
from wmpo_client.served_policy import Chunk
from wmpo_client.simulated_robot import SimulatedRobot, free_limits
from wmpo_ray.data.exchange.recorded_source import SourceNeeds, take_source
from wmpo_ray.data.store import load_episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.remote.robot_episodes import EpisodeFolder, read_episode


class Asked:
    """A policy whose n-th chunk is n + .1, n + .2, ...; each is given out when `release` is called."""

    def __init__(self, length: int = 4, at_once: bool = False):
        self.length, self.at_once, self.num = length, at_once, 0
        self._free, self.asked = threading.Semaphore(0), threading.Semaphore(0)

    def release(self) -> None:
        self._free.release()

    def __call__(self, seen) -> Chunk:
        self.asked.release()
        if not self.at_once:
            assert self._free.acquire(timeout=20)
        self.num += 1
        values = self.num + (1 + np.arange(self.length, dtype=np.float32)) / 10
        return Chunk(values[:, None], self.num, "")


def next_value(broker: ChunkBroker) -> float | None:
    due = broker.next(lambda: view(0))
    return None if due is None else round(float(due.action[0]), 4)


def test_without_asking_ahead_every_chunk_is_acted_to_its_end():
    policy = Asked(at_once=True)
    broker, values = ChunkBroker(policy), []
    while len(values) < 8:
        value = next_value(broker)
        values += [] if value is None else [value]
        if value is None:
            broker.wait(10)
    assert values == [1.1, 1.2, 1.3, 1.4, 2.1, 2.2, 2.3, 2.4]
    broker.close()


@pytest.mark.parametrize(("mode", "later"), [("switch", [2.2, 2.3]), ("blend", [1.8, 2.3])])
def test_a_chunk_is_asked_for_before_the_present_one_ends_and_what_is_past_of_it_is_dropped(mode, later):
    policy = Asked()
    broker = ChunkBroker(policy, mode, ask_ahead=2)
    assert next_value(broker) is None  # asked; nothing of the chunk is past when it comes, since nothing was done
    policy.release()
    assert broker.wait(10)
    assert [next_value(broker) for _ in range(3)] == [1.1, 1.2, 1.3]  # asked again where two are left
    policy.release()
    assert broker.wait(10)
    assert [next_value(broker) for _ in range(2)] == later  # 2.1 is past; 1.4 and 2.2 are of the same tick
    broker.close()


def test_blending_goes_from_the_running_chunk_to_the_new_one():
    running, new = np.zeros((2, 1), np.float32), np.ones((3, 1), np.float32)
    assert np.allclose(blended(running, new)[:, 0], [1 / 3, 2 / 3, 1])
    assert np.array_equal(blended(running[:0], new), new) and np.array_equal(new, np.ones((3, 1)))
    assert np.array_equal(blended(new, new), new), "chunks that agree stay as they are"


def test_a_chunk_of_the_episode_before_is_of_no_use():
    policy = Asked()
    broker = ChunkBroker(policy)
    assert next_value(broker) is None and policy.asked.acquire(timeout=20)
    broker.begin()
    policy.release()
    assert next_value(broker) is None
    policy.release()
    assert broker.wait(10) and next_value(broker) == 2.1
    broker.close()


def test_what_asking_raises_reaches_the_robot_and_it_asks_again():
    answers = [ClientError("gone"), Chunk(np.ones((1, 1), np.float32), 0, "")]

    def act(seen):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    broker = ChunkBroker(act)
    assert next_value(broker) is None and broker.wait(10)
    with pytest.raises(ClientError, match="gone"):
        next_value(broker)
    assert next_value(broker) is None and broker.wait(10) and next_value(broker) == 1.0
    broker.close()


# -- the whole loop ------------------------------------------------------------------------------------------------------


class Bench(Robot):
    """A robot that succeeds after `length` steps; an operator takes over at the steps of `corrected`."""

    def __init__(self, length: int = 6, corrected: tuple[int, ...] = ()):
        self.motors, self.length, self.corrected = Motors(), length, corrected

    def see(self):
        return view(len(self.motors.moves))

    def apply(self, action) -> None:
        self.motors.apply(action)

    def hold(self) -> None:
        self.motors.hold()

    def correction(self):
        return np.full(1, -0.5, np.float32) if len(self.motors.moves) in self.corrected else None

    def verdict(self):
        return True if len(self.motors.moves) >= self.length else None


def constant(seen) -> Chunk:
    return Chunk(np.full((4, 1), 0.25, np.float32), 3, "d")


FAST = DriveOptions(max_steps=20, rate_hz=0.0)


def test_an_episode_is_driven_and_recorded_with_the_operators_corrections(tmp_path):
    spool, robot = Spool(tmp_path), Bench(6, corrected=(2, 3))
    made = drive(robot, constant, WIDE, FAST, EpisodeRecorder(spool))
    assert made.success and made.num_steps == 6 and made.versions == {3}
    episode = read_episode(spool.waiting()[0])
    assert episode.id == made.id and episode.num_human == 2 and episode.has_verdict
    assert episode.recording.actions[:, 0].tolist() == [0.25, 0.25, -0.5, -0.5, 0.25, 0.25]
    assert robot.motors.num_holds == 1, "it is held at the end"


def test_corrections_reach_what_a_run_clones_and_other_episodes_have_none(tmp_path):
    """From the recorder through the store to the episodes that a run takes, where one of them has corrections."""
    spool, folder = Spool(tmp_path / "spool"), EpisodeFolder(tmp_path / "robot")
    ids = [
        drive(Bench(length, corrected), constant, WIDE, replace(FAST, purpose="demos"), EpisodeRecorder(spool)).id
        for length, corrected in ((6, (2, 3)), (8, ()))
    ]
    for path in spool.waiting():
        path.rename(folder.path(path.stem))
    folder.land_all()
    demos = folder.store / "demos"
    columns = [pq.read_schema(demos / f"{id}.parquet").names for id in ids]
    assert [("corrections" in names) for names in columns] == [True, False]
    needs = SourceNeeds(
        "demos.source", str(demos), "demos.num_trajectories", 2, (16, 16, 3), 1, (), 12, 2, 10**6, False, "", False
    )
    take_source(needs, tmp_path / "demos.parquet")
    taken = load_episodes(tmp_path / "demos.parquet")
    where = {int(length): np.flatnonzero(flags).tolist() for length, flags in zip(taken.lengths, taken.corrections)}
    assert where == {6: [2, 3], 8: []} and taken.corrections.shape == (2, 12)


def test_a_persons_keys_say_how_an_episode_ended_and_stop_the_robot(tmp_path):
    """Keys come from a queue in place of a keyboard; "" is its end."""
    pressed, spool = queue.Queue(), Spool(tmp_path)
    keys = OperatorKeys(pressed.get)
    keys.start()

    def episode(at_step: int, key: str, **options):
        robot = Bench(99)

        def act(seen):
            if len(robot.motors.moves) >= at_step:
                pressed.put(key)
            return constant(seen)

        return robot, drive(robot, act, WIDE, replace(FAST, **options), EpisodeRecorder(spool), keys=keys)

    keys.press("n")  # between episodes: forgotten
    for key, success in (("y", True), ("N", False)):
        _, made = episode(4, key, max_steps=10**6)
        recorded = read_episode(spool.ready / f"{made.id}.episode")
        assert made.success is success and made.num_steps >= 4
        assert (recorded.recording.success, recorded.has_verdict, recorded.decided_by) == (success, True, "operator")
    robot, made = episode(4, " ", max_steps=10**6)
    assert made.was_stopped and made.success is None and robot.motors.num_holds
    threading.Timer(0.05, keys.press, "y").start()
    assert episode(99, "", max_steps=3, verdict_s=20.0)[1].success, "after the last step it is waited for"
    assert episode(99, "", max_steps=3)[1].success is None
    pressed.put("")


def test_a_stop_ends_the_episode_and_leaves_its_verdict_to_a_person(tmp_path):
    spool, robot = Spool(tmp_path), Bench(99)

    def watch(behind: SafeRobot) -> None:
        apply = behind._apply

        def stops_at_third(action) -> None:
            apply(action)
            if len(robot.motors.moves) == 3:
                threading.Thread(target=behind.stop).start()
                time.sleep(0.05)

        behind._apply = stops_at_third

    made = drive(robot, constant, WIDE, FAST, EpisodeRecorder(spool), watch)
    assert made.was_stopped and made.num_steps == 3 and made.success is None
    assert not read_episode(spool.waiting()[0]).has_verdict


def test_a_policy_that_does_not_answer_leaves_the_robot_held_and_no_empty_episode(tmp_path):
    spool, robot, never = Spool(tmp_path), Bench(), threading.Event()
    options = DriveOptions(max_steps=20, rate_hz=100.0, patience_s=0.2)
    with pytest.raises(ClientError, match="no chunk of actions came within 0.2 s; the robot is held"):
        drive(robot, lambda seen: never.wait(5), WIDE, options, EpisodeRecorder(spool))
    never.set()
    assert robot.motors.num_holds >= 1 and spool.waiting() == []


def test_a_full_disk_holds_the_robot_and_keeps_the_steps_that_were_recorded(tmp_path, monkeypatch):
    spool, robot, real = Spool(tmp_path), Bench(), EpisodeFileWriter.append
    room = iter(range(4))  # records: the start and three steps

    def append(writer, record):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(writer, record)

    monkeypatch.setattr(EpisodeFileWriter, "append", append)
    recorder = EpisodeRecorder(spool)
    with pytest.raises(ClientError, match="No space left on device; what was recorded before stays"):
        drive(robot, Asked(at_once=True), WIDE, DriveOptions(max_steps=20, rate_hz=0.0), recorder)
    assert robot.motors.num_holds >= 1 and not recorder.is_recording and spool.waiting() == []
    spool.close()
    monkeypatch.undo()
    (path,) = Spool(tmp_path).waiting()
    assert read_episode(path).recording.length == 3


def test_a_simulated_robot_is_the_scene_that_it_would_be_here():
    with serve_environment(lambda: PocketEnvironment(8)) as simulator:
        robot, here = SimulatedRobot(Scenes(simulator.connection())), PocketEnvironment(8)
        robot.reset(5)
        here.reset([5])
        made = drive(robot, lambda seen: Chunk(np.full((4, 3), 0.5, np.float32), 0, ""), free_limits(3), FAST)
        for _ in range(8):
            here.step(np.full((1, 3), 0.5))
        assert np.array_equal(robot.see().images["main"], here.render()[0])
        assert made.success is bool(here.success[0]) and made.num_steps == 8
