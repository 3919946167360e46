"""Which weights of a run are served, what waits for robots, and the labels of a person."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from cluster.cli.labelling import label_episodes, picture
from cluster.host.connection import start_here
from cluster.serving.label_page import LabelPage
from cluster.serving.label_session import Guess, Labelling
from cluster.serving.robot_wait import wait_for_robot
from cluster.serving.served_folder import choose_weights
from tests.support.implementations import make_tiny
from tests.support.robot_recordings import record
from tests.support.served_policies import CONFIG, ServedTiny, seen
from wmpo_client.episode_spool import Spool
from wmpo_client.refusals import Refusal
from wmpo_client.served_policy import ServedPolicy
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.data_set import load_data, provenance_of
from wmpo_ray.remote.robot_episodes import EpisodeFolder, frames_of
from wmpo_ray.remote.served_weights import Weights, find_weights, load_weights
from wmpo_ray.runs.checkpoint import new_checkpoint, save_checkpoint
from wmpo_ray.runs.folder import RunFolder


def network(seed: int):
    made = make_tiny()
    torch.manual_seed(seed)
    torch.nn.init.normal_(made.heads)
    return made


def same(one, other) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with a base policy, whose optimize goes on."""
    with RunFolder.open(tmp_path / "run", CONFIG):
        network(0).save_pretrained(tmp_path / "run" / "models" / "base-policy")
    return tmp_path / "run"


def save_step(run: Path, step: int) -> None:
    tensors = {f"policy.{name}": tensor for name, tensor in network(step).state_dict().items()}
    save_checkpoint(run / "checkpoints", step, {**tensors, "optimizer.step": torch.zeros(1)}, {}, keep=9)


def test_the_newest_weights_of_a_run_are_found_as_it_goes_on(run):
    base = find_weights(run)
    assert base.num_updates == 0 and base.path.name == "base-policy" and not base.is_final
    for step in (1, 2):
        save_step(run, step)
        found = find_weights(run)
        policy, digest = load_weights(CONFIG, found)
        assert found.num_updates == step and same(policy, network(step)) and len(digest) == 16
        assert found.state != base.state
    network(9).save_pretrained(run / "models" / "policy")
    assert find_weights(run).num_updates == 2, "the stage has not ended"
    with RunFolder.open(run, CONFIG) as folder:
        folder.finish("optimize", 1.0, {})
    final = find_weights(run)
    assert (
        final.is_final and final.path == run / "models" / "policy" and same(load_weights(CONFIG, final)[0], network(9))
    )
    assert same(load_weights(CONFIG, find_weights(run, "1"))[0], network(1))
    assert find_weights(run, "0").path.name == "base-policy"


@pytest.mark.parametrize(("which", "message"), [("7", "no checkpoint of update 7"), ("last", "latest, or a number")])
def test_weights_that_are_not_there_are_named(run, which, message):
    with pytest.raises(UserError, match=message):
        find_weights(run, which)


def test_a_checkpoint_of_another_policy_is_refused(run):
    with new_checkpoint(run / "checkpoints", 1, {}, 1, {}) as folder:
        save_file({"policy.other": torch.zeros(3)}, folder / "tensors.safetensors")
    with pytest.raises(UserError, match="holds no weights of this policy"):
        load_weights(CONFIG, find_weights(run))


def test_a_final_policy_is_served_until_there_is_another_one(tmp_path):
    with ServedTiny(tmp_path) as server:
        network(1).save_pretrained(tmp_path / "one")
        network(2).save_pretrained(tmp_path / "two")
        for weights, taken in (
            (Weights(tmp_path / "one", 2, is_final=True), True),
            (Weights(tmp_path / "policy", 0), False),
            (Weights(tmp_path / "two", 2, is_final=True), True),
        ):
            server.weights = weights
            assert server.run(server.inside.look_for_weights(lambda text: None)) is taken


def test_a_folder_needs_settings_and_a_run_has_its_own(run, tmp_path):
    config, find = choose_weights(run, "latest", None, ())
    assert config == CONFIG and find().num_updates == 0
    for folder, options, message in (
        (run, ("latest", "smoke", ()), "knows its settings"),
        (tmp_path / "none", ("latest", None, ()), "no such folder"),
        (run / "models" / "base-policy", ("latest", None, ()), "say with --config"),
        (run / "models" / "base-policy", ("3", "smoke", ()), "holds one; name a run"),
    ):
        with pytest.raises(UserError, match=message):
            choose_weights(folder, *options)
    assert choose_weights(run / "models" / "base-policy", "latest", "smoke", ())[1]().num_updates == 0


# -- episodes of robots --------------------------------------------------------------------------------------------------


def send(folder: EpisodeFolder, spool: Spool, **options) -> str:
    id = record(spool, **options)
    spool.waiting()[0].rename(folder.path(id))
    try:
        folder.land(id)
    except Refusal:
        pass
    return id


@pytest.fixture
def episodes(tmp_path) -> tuple[EpisodeFolder, Spool]:
    return EpisodeFolder(tmp_path / "robot"), Spool(tmp_path / "spool")


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_person_gives_verdicts_takes_them_back_and_ends(episodes):
    folder, spool = episodes
    ids = sorted(send(folder, spool, value=value, success=None) for value in range(4))
    send(folder, spool, value=9)
    assert folder.count("collect") == 1 and folder.unlabelled() == sorted(ids)
    keys = iter("ynuyrsyq")
    assert label_episodes(Labelling(folder.root, print), quiet(), lambda: next(keys), 0) == 3
    assert list(folder.labels().values()) == ["success", "success", "success"] and len(folder.unlabelled()) == 1
    stored = load_data(folder.store / "collect")
    assert len(stored) == 4 and stored.success.all()
    folder.set_label(ids[0], "failure")
    assert load_data(folder.store / "collect").success.sum() == 3
    folder.set_label(ids[0], None)
    assert folder.count("collect") == 3 and ids[0] in folder.unlabelled()


def test_a_page_plays_episodes_and_takes_verdicts_of_who_knows_its_address(episodes):
    folder, spool = episodes
    ids = sorted(send(folder, spool, value=value, success=None) for value in range(3))
    with LabelPage(Labelling(folder.root, print, lambda found: Guess(True, 0.75)), 0) as page:

        def ask(what: str, sent: dict | None = None, url: str = page.url) -> bytes:
            return urlopen(url + what, None if sent is None else json.dumps(sent).encode(), timeout=10).read()

        def press(key: str, id: str) -> dict:
            return json.loads(ask("press", {"key": key, "id": id}))

        assert b"<script>" in ask("")
        state = json.loads(ask("state"))
        assert (state["id"], state["left"], state["guess"]) == (
            ids[0],
            3,
            "the reward model: success (probability 0.75)",
        )
        with Image.open(io.BytesIO(ask(f"frames/{ids[0]}"))) as film:
            assert film.n_frames == 5 and film.size == (16, 16)
            assert np.array_equal(np.asarray(film.convert("RGB")), next(frames_of(folder.path(ids[0]))))
        assert press("y", ids[0])["id"] == ids[1]
        assert press("y", ids[0])["id"] == ids[1], "the same key twice labels one"
        assert press("s", ids[1])["id"] == press("n", ids[2])["id"] + ids[2]
        assert folder.labels() == {ids[0]: "success", ids[2]: "failure"}
        assert press("u", "")["id"] == ids[2] and folder.labels() == {ids[0]: "success"}
        for what, sent, url in (
            ("", None, page.url.replace(page.secret, "wrong")),
            ("state", None, page.url.replace(page.secret + "/", "")),
            ("press", {"key": "y", "id": ids[2]}, page.url.replace(page.secret, "wrong")),
            ("frames/../../labels.json", None, page.url),
            ("press", {"key": "y", "id": "a" * 2000}, page.url),
            ("press", {"id": ids[2]}, page.url),
        ):
            with pytest.raises(HTTPError):
                ask(what, sent, url)
        assert folder.labels() == {ids[0]: "success"}


def test_a_reward_model_labels_what_it_is_sure_of_and_its_probability_is_kept(episodes):
    folder, spool = episodes
    ids = sorted(send(folder, spool, value=value, success=None) for value in range(4))
    guesses = dict(zip(ids, (Guess(True, 0.99), Guess(False, 0.02), Guess(True, 0.7), None), strict=True))
    by_frame = {next(frames_of(folder.path(id))).tobytes(): guess for id, guess in guesses.items()}
    labelling = Labelling(folder.root, print, lambda found: by_frame[found.frames[0].tobytes()])
    assert labelling.label_what_is_sure(0.95) == 2 and labelling.waiting == ids[2:]
    assert folder.labels() == {ids[0]: "success", ids[1]: "failure"}
    notes = provenance_of(folder.landed(ids[0])).notes
    assert notes[0] == "decided by the reward model (probability of success 0.990)"
    folder.set_label(ids[0], "failure")
    assert provenance_of(folder.landed(ids[0])).notes[0] == "decided by a person"


def test_landing_again_changes_nothing(episodes):
    folder, spool = episodes
    id = send(folder, spool)
    before = folder.landed(id).read_bytes()
    folder.land(id)
    folder.land_all()
    assert folder.landed(id).read_bytes() == before and folder.count("collect") == 1


def test_a_folder_without_episodes_is_named(tmp_path):
    with pytest.raises(UserError, match="no episodes of robots"):
        Labelling(tmp_path, print)


def test_a_picture_has_the_colours_of_its_frame():
    text = picture(np.full((64, 64, 3), (10, 20, 30), np.uint8))
    assert "rgb(10,20,30)" in str(text.spans[0].style) and len(text.plain.splitlines()) == 32


def test_a_run_waits_until_the_robots_have_sent_enough(episodes):
    folder, spool = episodes
    source = f"collect.source={folder.store / 'collect'}"
    config = load_config("smoke", (source, "collect.num_trajectories=3"))
    waiting = threading.Thread(target=wait_for_robot, args=(config, quiet(), 0.01), daemon=True)
    waiting.start()
    for value in range(2):
        send(folder, spool, value=value)
    waiting.join(0.3)
    assert waiting.is_alive()
    send(folder, spool, value=2)
    waiting.join(60)
    assert not waiting.is_alive()
    with pytest.raises(UserError, match="names a folder; set collect.source"):
        wait_for_robot(load_config("smoke", ()), quiet())
    assert (
        json.loads((folder.root / "labels.json").read_text() if (folder.root / "labels.json").exists() else "{}") == {}
    )


@pytest.mark.slow
def test_replicas_that_ray_places_answer_and_take_new_weights_in_turn(tmp_path):
    import ray

    start_here(num_cpus=2)
    try:
        with ServedTiny(tmp_path, num_replicas=2) as server:
            robots = [ServedPolicy(server.connection(), f"r{n}", patience_s=20.0) for n in range(4)]
            network(5).save_pretrained(tmp_path / "other")
            server.weights = Weights(tmp_path / "other", 8)
            loading = asyncio.run_coroutine_threadsafe(server.inside.look_for_weights(lambda text: None), server._loop)
            found = [robot.act(seen(0)).num_updates for _ in range(20) for robot in robots]
            assert loading.result(60) and set(found) <= {7, 8}
            assert {robot.act(seen(1)).num_updates for robot in robots} == {8}
    finally:
        ray.shutdown()
