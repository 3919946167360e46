"""Episodes on their way to the server: nothing is lost, nothing is there twice, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.robots.faulty_network import FaultyNetwork
from tests.support.documents import ROOT
from tests.support.remote_servers import TOKEN
from tests.support.robot_recordings import frame, record, recorded
from tests.support.served_policies import ServedTiny
from wmpo_client.episode_spool import Spool, Uploader
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError, Refusal
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.data.data_set import load_data, provenance_of
from wmpo_ray.remote import upload_store
from wmpo_ray.remote.robot_episodes import EpisodeFolder, read_episode
from wmpo_ray.remote.upload_store import Piece, UploadStore


@pytest.fixture
def served(tmp_path):
    with ServedTiny(tmp_path, tmp_path / "robot") as server:
        yield server


def uploader(spool: Spool, connection: Connection, **options) -> Uploader:
    return Uploader(spool, connection, pause_s=0.02, most_pause_s=0.1, **options)


def test_an_episode_lands_in_the_store_as_it_was_recorded(served, tmp_path):
    spool, id = recorded(tmp_path / "spool", value=3, seed=12)
    sender = uploader(spool, served.connection())
    sender.start()
    assert sender.wait(30) and sender.num_sent == 1
    sender.stop()
    episodes = load_data(tmp_path / "robot" / "store" / "collect")
    assert episodes.lengths.tolist() == [4] and episodes.success.tolist() == [True] and episodes.seeds.tolist() == [12]
    assert np.array_equal(episodes.frames[0], np.stack([frame(3000 + step) for step in range(5)]))
    assert np.array_equal(episodes.actions[0], np.full((4, 3), 0.03, np.float32))
    assert {name: flags.tolist() for name, flags in episodes.failures.items()} == {"miss": [False], "jam": [False]}
    origin = provenance_of(tmp_path / "robot" / "store" / "collect")
    assert origin.origin == "real" and origin.policy_version == 7
    assert origin.notes == ("decided by operator", "1 of 4 steps are an operator's")
    assert served.episodes.ids() == [id]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_that_cuts_doubles_and_reorders_loses_nothing_and_doubles_nothing(served, tmp_path, seed):
    spool = Spool(tmp_path / "spool")
    ids = [record(spool, value) for value in range(12)]
    network = FaultyNetwork(served.target, seed)
    sender = uploader(spool, Connection(Address(network.target, token=TOKEN)), piece_bytes=1000)
    sender.start()
    assert sender.wait(120) and sender.num_sent == 12
    sender.stop()
    network.close()
    assert min(network.counts[fault] for fault in ("cut_before", "cut_after", "twice", "late")) > 0
    assert served.episodes.ids() == sorted(ids)
    episodes = load_data(tmp_path / "robot" / "store" / "collect")
    values = sorted(round(float(actions[0, 0]) * 100) for actions in episodes.actions)
    assert values == list(range(12)) and not list((tmp_path / "robot" / "incoming").iterdir())


def test_a_server_that_is_killed_in_the_middle_goes_on_where_it_was(tmp_path):
    server = ServedTiny(tmp_path, tmp_path / "robot")
    spool, id = recorded(tmp_path / "spool")
    path = spool.waiting()[0]
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    connection = server.connection()
    stub = rpc.EpisodesStub(connection.channel)
    piece = pb.UploadPiece(id=id, sha256=digest, total_bytes=len(data), data=data[:500])
    assert connection.call(stub.Put, piece, 10).received_bytes == 500
    server.stop()
    with ServedTiny(tmp_path, tmp_path / "robot", listen=server.target) as again:
        state = again.connection().call(stub.State, pb.UploadName(id=id, sha256=digest), 10)
        assert state.received_bytes == 500 and not state.complete
        sender = uploader(spool, again.connection())
        sender.send(path)
        assert again.episodes.ids() == [id] and again.episodes.count("collect") == 1


def test_what_had_come_and_not_landed_lands_when_the_server_begins_again(tmp_path):
    folder = EpisodeFolder(tmp_path / "robot")
    spool, id = recorded(tmp_path / "spool")
    os.replace(spool.waiting()[0], folder.path(id))
    with ServedTiny(tmp_path, tmp_path / "robot") as server:
        assert server.episodes.count("collect") == 1
    with ServedTiny(tmp_path, tmp_path / "robot") as server:
        assert server.episodes.count("collect") == 1


def put(store: UploadStore, content: bytes, id: str = "episode-1", offset: int = 0, total: int = 0, **changes):
    piece = Piece(id, hashlib.sha256(content).hexdigest(), total or len(content), offset, content)
    return store.put(piece._replace(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "../../etc/passwd"}, "neither is one"),
        ({"id": "UPPER-CASE"}, "neither is one"),
        ({"sha256": "xyz"}, "neither is one"),
        ({"total_bytes": 2**50}, "are the most of a file"),
        ({"total_bytes": 3}, "of 3"),
        ({"data": b""}, "0 bytes"),
        ({"offset": 2**40, "total_bytes": 2**41}, "are the most of a file"),
        ({}, "it does not begin as one"),
    ],
)
def test_what_is_no_episode_is_refused_and_leaves_nothing(tmp_path, changes, message):
    store = UploadStore(EpisodeFolder(tmp_path))
    with pytest.raises(Refusal, match=message):
        put(store, b"no episode at all", **changes)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_file_under_a_known_id_is_refused(tmp_path):
    spool, id = recorded(tmp_path / "spool")
    data = spool.waiting()[0].read_bytes()
    store = UploadStore(EpisodeFolder(tmp_path / "robot"))
    assert put(store, data, id).is_complete and put(store, data, id).is_complete
    with pytest.raises(Refusal, match="another episode is called"):
        put(store, data + b"x", id)


def test_a_piece_that_does_not_begin_where_the_file_ends_is_not_taken(tmp_path):
    store = UploadStore(EpisodeFolder(tmp_path))
    sha256 = "0" * 64
    assert put(store, b"abc", total=9, sha256=sha256).received_bytes == 3
    assert put(store, b"ghi", offset=6, total=9, sha256=sha256).received_bytes == 3
    assert put(store, b"abc", total=9, sha256=sha256).received_bytes == 3
    assert put(store, b"def", offset=3, total=9, sha256=sha256).received_bytes == 6
    assert put(store, b"ghi", offset=6, total=9, sha256=sha256).received_bytes == 0, (
        "its hash is another: from the start"
    )


def test_a_full_disk_of_the_server_is_waited_for(served, tmp_path, monkeypatch):
    spool, id = recorded(tmp_path / "spool")
    monkeypatch.setattr(upload_store, "RESERVE_BYTES", 2**60)
    sender = uploader(spool, served.connection(), call_s=0.2)
    sender.start()
    assert not sender.wait(1.0) and sender.num_refused == 0
    monkeypatch.setattr(upload_store, "RESERVE_BYTES", 0)
    assert sender.wait(30) and served.episodes.ids() == [id]
    sender.stop()
    assert served.refused("disk_full") > 0


def test_half_of_a_piece_does_not_count(tmp_path, monkeypatch):
    store = UploadStore(EpisodeFolder(tmp_path))
    put(store, b"abc", total=9, sha256="0" * 64)
    real = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            self.file.write(data[:1])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *args: Full(real(*args)))
    with pytest.raises(Refusal, match="the disk is full"):
        put(store, b"def", offset=3, total=9, sha256="0" * 64)
    monkeypatch.undo()
    assert put(store, b"def", offset=3, total=9, sha256="0" * 64).received_bytes == 6


def test_what_the_server_never_takes_is_put_aside_and_others_go_on(served, tmp_path):
    spool, good = recorded(tmp_path / "spool")
    (spool.ready / "20000101-000000-damaged.episode").write_bytes(b"WMPOEP1\nnonsense")
    said: list[str] = []
    sender = uploader(spool, served.connection(), report=said.append)
    sender.start()
    assert sender.wait(30) and (sender.num_sent, sender.num_refused) == (1, 1)
    sender.stop()
    assert "cut off" in said[0] and [path.name for path in spool.refused.iterdir()] == [
        "20000101-000000-damaged.episode"
    ]
    assert served.episodes.ids() == [good]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.robot_recordings import record, view
from wmpo_client.episode_spool import Spool
from wmpo_client.episode_recorder import EpisodeRecorder
import numpy as np
spool = Spool(Path(sys.argv[1]))
record(spool, 1)
recorder = EpisodeRecorder(spool)
recorder.begin(view(0))
for step in range(3):
    recorder.step(np.zeros(3), view(step))
recorder._file._file.write(b"half of a rec")
recorder._file._file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_robot_program_that_is_killed_loses_no_step(served, tmp_path):
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), str(tmp_path / "spool")]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -9
    spool = Spool(tmp_path / "spool")
    assert len(spool.waiting()) == 2
    sender = uploader(spool, served.connection())
    sender.start()
    assert sender.wait(30)
    sender.stop()
    found = {read_episode(served.episodes.path(id)).recording.length for id in served.episodes.ids()}
    assert found == {3, 4} and len(served.episodes.unlabelled()) == 1, "nobody said how the second one ended"


def test_two_programs_do_not_share_a_spool(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(ClientError, match="in use by another process"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_unauthorized_uploads_are_refused(served, tmp_path):
    spool, _ = recorded(tmp_path / "spool")
    wrong = Connection(Address(served.target, token="another-token-0123456789"))
    with pytest.raises(grpc.RpcError, match="no token, or a wrong one"):
        uploader(spool, wrong).send(spool.waiting()[0])
    assert isinstance(spool.waiting()[0], Path) and served.episodes.ids() == []
