"""Which weights of a run are served, what waits for robots, and the labels of a person."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from cluster.cli.labelling import label_episodes, picture
from cluster.serving.robot_wait import wait_for_robot
from cluster.serving.served_folder import choose_weights
from tests.support.implementations import make_tiny
from tests.support.robot_recordings import record
from tests.support.served_policies import CONFIG, ServedTiny
from wmpo_client.episode_spool import Spool
from wmpo_client.refusals import Refusal
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.data.data_set import load_data
from wmpo_ray.remote.robot_episodes import EpisodeFolder
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
    ids = [send(folder, spool, value=value, success=None) for value in range(4)]
    send(folder, spool, value=9)
    assert folder.count("collect") == 1 and folder.unlabelled() == sorted(ids)
    keys = iter("ynuyrsyq")
    assert label_episodes(folder.root, quiet(), lambda: next(keys), 0) == 3
    assert list(folder.labels().values()) == ["success", "success", "success"] and len(folder.unlabelled()) == 1
    stored = load_data(folder.store / "collect")
    assert len(stored) == 4 and stored.success.all()
    folder.set_label(ids[0], "failure")
    assert load_data(folder.store / "collect").success.sum() == 3
    folder.set_label(ids[0], None)
    assert folder.count("collect") == 3 and ids[0] in folder.unlabelled()


def test_landing_again_changes_nothing(episodes):
    folder, spool = episodes
    id = send(folder, spool)
    before = folder.landed(id).read_bytes()
    folder.land(id)
    folder.land_all()
    assert folder.landed(id).read_bytes() == before and folder.count("collect") == 1


def test_a_folder_without_episodes_is_named(tmp_path):
    with pytest.raises(UserError, match="no episodes of robots"):
        label_episodes(tmp_path, quiet())


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
