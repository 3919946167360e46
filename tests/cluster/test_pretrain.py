"""The stage `pretrain`: a world model from play or recorded episodes, that the same run or another one begins with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.pretraining.play_or_source import needs_of, training_parts
from cluster.recipes.pretraining.pretrain import check
from cluster.recipes.recipe_table import stage_labels, steps_of
from learners.supervised.pretraining import PretrainTrainer
from wmpo_ray.config.loading import load_config, validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.exchange.lerobot_export import export_lerobot
from wmpo_ray.data.exchange.recorded_source import take_source
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import load_episodes, save_episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.play import collect_play
from wmpo_ray.registry import begin_world_model
from wmpo_ray.rollout.evaluation import rollout_expert
from wmpo_ray.runs.folder import RunFolder

SMALL = {
    "seed": 3,
    "recipe": {"kind": "pretrain"},
    "world_model": {
        "pretrained": "",
        "network": {"hidden_size": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "denoiser": {"prediction": "sample", "input_scaling": True, "residual": True},
        "sampler": {"num_steps": 1},
        "alignment": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    },
    "checkpoint": {"every_training_steps": 4},
}
TRAINING = {"steps": 10, "batch_size": 4, "warmup_steps": 2, "measure_every": 5, "num_held_out": 4}
WEIGHTS = "models/pretrained/diffusion_pytorch_model.safetensors"


def config_of(pretrain: dict | None = None, **sections) -> Config:
    return validate({**SMALL, "pretrain": {**TRAINING, "num_trajectories": 12, **(pretrain or {})}, **sections})


class Killed(BaseException):
    """What nothing in a run survives."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    run_pipeline(config_of(), folder, serial=True)
    return folder


@pytest.fixture(scope="module")
def recorded() -> Episodes:
    """Longer than the episodes of the runs here."""
    return rollout_expert(PocketEnvironment(38), np.arange(12), 2.0, (0, "demos"))


def test_play_becomes_a_world_model_with_a_card(pretrained):
    metrics = RunFolder(pretrained).metrics("pretrain")
    assert {"grasp_agreement", "placement_agreement", "psnr_db", "held_out_loss", "step"} <= metrics.keys()
    card = json.loads((pretrained / "models" / "pretrained" / "card.json").read_text())
    assert card["data"]["source"] == "play" and card["data"]["provenance"]["made_by"] == "play"
    assert (card["data"]["num_episodes"], card["data"]["num_held_out"]) == (8, 4)
    assert card["settings"]["pretrain"]["steps"] == 10 and card["settings"]["seed"] == 3
    assert list((pretrained / "trajectories").iterdir()) == [], "episodes are the state of the stage"
    assert (pretrained / "curves" / "pretrain.jsonl").is_file()


def test_another_run_begins_with_the_folder(pretrained):
    path = str(pretrained / "models" / "pretrained")
    other = config_of({"steps": 0}, recipe={"kind": "wmpo"}, world_model={"pretrained": path})
    world = begin_world_model(other, path, 0)
    assert world.denoiser.config.prediction == "sample"
    assert "pretrain" not in stage_labels(other)


def test_in_a_run_the_stage_comes_first_and_alignment_begins_with_its_model(tmp_path):
    small = {"num_trajectories": 8}
    config = config_of(
        recipe={"kind": "wmpo"},
        demos=small,
        policy={"network": {"width": 32, "num_layers": 1, "num_heads": 2}, "cloning": {"steps": 2, "batch_size": 4}},
        collect=small,
        gate=small,
        reward={"steps": 2, "batch_size": 4},
    )
    steps = {step.label: step for step in steps_of(config)}
    assert next(iter(steps)) == "pretrain" and "pretrain" in steps["world-model"].needs
    run_pipeline(config, tmp_path / "run", serial=True, until="world-model")
    own = begin_world_model(config, str(tmp_path / "run" / "models" / "pretrained"), 0)
    fresh = begin_world_model(config, "", 0)
    aligned = begin_world_model(config, str(tmp_path / "run" / "models" / "world-model"), 0)
    distance = [
        sum(float((a - b).detach().abs().sum()) for a, b in zip(_parameters(aligned), _parameters(world), strict=True))
        for world in (own, fresh)
    ]
    assert distance[0] < 0.2 * distance[1], "two small steps away from the pretrained weights"


def _parameters(world):
    return list(world.denoiser.network.parameters())


def test_it_goes_on_in_its_middle_with_the_same_episodes(pretrained, tmp_path, monkeypatch):
    folder, advance = tmp_path / "run", PretrainTrainer.train_on

    def train_on(self, batch):
        if self.num_steps == 7:
            raise Killed
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "train_on", train_on)
        with pytest.raises(Killed):
            run_pipeline(config_of(), folder, serial=True)
    assert (folder / "trajectories" / "pretrain.parquet").is_file()
    monkeypatch.setattr("cluster.recipes.pretraining.pretrain.record_episodes", None)
    run_pipeline(config_of(), folder, serial=True, resume=True)
    assert (folder / WEIGHTS).read_bytes() == (pretrained / WEIGHTS).read_bytes()


def test_stored_play_is_the_play_of_the_environment(tmp_path, monkeypatch):
    def stop(self, batch):
        raise Killed

    monkeypatch.setattr(PretrainTrainer, "train_on", stop)
    with pytest.raises(Killed):
        run_pipeline(config_of(), tmp_path / "run", serial=True)
    stored, play = load_episodes(tmp_path / "run" / "trajectories" / "pretrain.parquet"), collect_play(12, 32, seed=3)
    assert np.array_equal(stored.frames[:], play.frames) and np.array_equal(stored.actions, play.actions)
    assert stored.instructions == play.instructions and (stored.seeds == -1).all()
    contact = np.load(tmp_path / "run" / "trajectories" / "pretrain-contact.npy")
    assert np.array_equal(contact, play.contact)


@pytest.mark.parametrize("kind", ["parquet", "hdf5", "lerobot"])
def test_recorded_episodes_of_any_format_are_taken_whole(recorded, tmp_path, kind):
    own = tmp_path / "own.parquet"
    save_episodes(own, recorded, Provenance(origin="real", made_by="a person"))
    path = {"parquet": own, "hdf5": tmp_path / "own.hdf5", "lerobot": tmp_path / "set"}[kind]
    if kind == "hdf5":
        pytest.importorskip("h5py")
        export_robomimic(own, path)
    elif kind == "lerobot":
        export_lerobot(own, path)
    config = config_of({"source": str(path), "num_trajectories": 0})
    check(config, True)
    (part,) = training_parts(config)
    needs = needs_of(config, part)
    assert needs.num_episodes == 12 and needs.horizon % 4 == 0 and needs.horizon >= recorded.lengths.max()
    take_source(needs, tmp_path / "taken.parquet")
    taken = load_episodes(tmp_path / "taken.parquet")
    assert taken.actions.shape[1] == needs.horizon and (taken.lengths == recorded.lengths).all()
    assert all(
        np.array_equal(taken.frames[i, : n + 1], recorded.frames[i, : n + 1]) for i, n in enumerate(recorded.lengths)
    )


def test_recorded_episodes_become_a_world_model(recorded, tmp_path):
    save_episodes(tmp_path / "own.parquet", recorded)
    config = config_of({"source": str(tmp_path / "own.parquet"), "num_trajectories": 10})
    run_pipeline(config, tmp_path / "run", serial=True)
    card = json.loads((tmp_path / "run" / "models" / "pretrained" / "card.json").read_text())
    assert card["data"]["source"] == "own.parquet" and card["data"]["content"].startswith("sha256:")
    assert card["data"]["num_episodes"] == 6


def mixture(folder: Path, recorded: Episodes) -> dict:
    """Play and recorded episodes, and others that choose the checkpoint."""
    save_episodes(folder / "policy.parquet", recorded.rows(slice(8)))
    save_episodes(folder / "other.parquet", recorded.rows(slice(8, None)))
    sources = ["play", str(folder / "policy.parquet")]
    return {"sources": sources, "shares": [1.0, 3.0], "held_out": str(folder / "other.parquet")}


def test_several_sources_and_a_shipped_model_become_a_world_model(recorded, pretrained, tmp_path):
    path, settings = str(pretrained / "models" / "pretrained"), mixture(tmp_path, recorded)
    world = {**SMALL["world_model"], "pretrained": path}
    config = config_of({**settings, "num_trajectories": 6, "learning_rate": 1e-6}, world_model=world)
    run_pipeline(config, tmp_path / "run", serial=True)
    data = json.loads((tmp_path / "run" / "models" / "pretrained" / "card.json").read_text())["data"]
    assert data["source"] == "play and policy.parquet" and data["held_out"]["source"] == "other.parquet"
    assert (data["num_episodes"], data["num_held_out"]) == (14, 4)
    assert [(part["share"], part["num_episodes"]) for part in data["sources"]] == [(0.25, 6), (0.75, 8)]
    assert list((tmp_path / "run" / "trajectories").iterdir()) == [], "episodes are the state of the stage"
    before, after = (begin_world_model(config, each, 0) for each in (path, str(tmp_path / "run" / "models/pretrained")))
    changes = [
        float((a - b).detach().abs().max()) for a, b in zip(_parameters(before), _parameters(after), strict=True)
    ]
    assert 0 < max(changes) < 1e-4, "it went on from where the other ended"


def test_sources_count_by_their_content(recorded, tmp_path):
    from cluster.recipes.pretraining.pretrain import PRETRAIN
    from cluster.recipes.stage import settings_of

    config = config_of(mixture(tmp_path, recorded))
    (play, policy), other = (settings_of(PRETRAIN, config)[f"pretrain.{key}"] for key in ("sources", "held_out"))
    assert play == "play" and policy.startswith("sha256:") and other.startswith("sha256:")
    save_episodes(tmp_path / "policy.parquet", recorded.rows(slice(7)))
    assert settings_of(PRETRAIN, config)["pretrain.sources"][1] != policy
    assert {"pretrain.sources", "pretrain.shares", "pretrain.held_out"}.isdisjoint(settings_of(PRETRAIN, config_of()))


def test_what_chooses_the_checkpoint_is_not_trained_on(recorded, tmp_path):
    settings = mixture(tmp_path, recorded)
    with pytest.raises(UserError, match=r"pretrain\.held_out = .* has the same content as .*policy\.parquet"):
        check(config_of({**settings, "held_out": settings["sources"][1]}), True)
    with pytest.raises(UserError, match=r"holds 4 episodes, pretrain\.num_held_out = 5"):
        check(config_of({**settings, "num_held_out": 5}), True)


@pytest.mark.parametrize(
    ("pretrain", "sections", "message"),
    [
        ({"steps": 0}, {}, r'pretrain\.steps = 0: recipe\.kind = "pretrain" does nothing else'),
        ({"num_trajectories": 0}, {}, r"pretrain\.num_trajectories = 0 takes all of pretrain\.source"),
        ({"num_held_out": 12}, {}, r"pretrain\.num_held_out = 12 leaves none of the 12 episodes"),
        ({"source": "missing.parquet"}, {}, r"pretrain\.source = missing\.parquet: there is no such file"),
        ({"reward_model": "missing"}, {}, r"pretrain\.reward_model = missing: does not exist"),
        ({"source": "s3://bucket/x"}, {}, r"pretrain\.source = .*no file system"),
        ({}, {"recipe": {"kind": "dpo"}, "algorithm": {"kind": "dpo"}}, r"pretrain\.steps = 10: .*has no world model"),
        (
            {},
            {"environment": {"kind": "aloha", "horizon": 32}},
            r'environment\.kind = "aloha" cannot play by itself; set pretrain\.source',
        ),
        (
            {"sources": ["play"], "held_out": "x.parquet"},
            {"environment": {"kind": "aloha", "horizon": 32}},
            r'pretrain\.sources name "play", and environment\.kind = "aloha"',
        ),
        ({"sources": ["play", "x.parquet"]}, {}, r"pretrain\.held_out is empty, and pretrain\.sources"),
        ({"sources": ["play", "play"], "held_out": "x"}, {}, r"pretrain\.sources = \['play', 'play'\]: .* once"),
        ({"sources": ["play"], "source": "x", "held_out": "y"}, {}, r"pretrain\.source = x and pretrain\.sources"),
        ({"sources": ["play"], "shares": [1.0, 2.0], "held_out": "y"}, {}, r"pretrain\.shares = \[1\.0, 2\.0\]: 2 for"),
        ({"held_out": "missing.parquet"}, {}, r"pretrain\.held_out = missing\.parquet: there is no such file"),
        ({"sources": ["s3://bucket/x"], "held_out": "y"}, {}, r"pretrain\.sources = .*no file system"),
        ({}, {"world_model": {"kind": "simulator"}, "reward": {"verify": {"enabled": False}}}, r"pretrain\.steps = 10"),
    ],
)
def test_what_cannot_be_is_named_before_any_work(tmp_path, pretrain, sections, message):
    with pytest.raises(UserError, match=message):
        config = config_of(pretrain, **sections)
        for step in steps_of(config):
            step.stage.check(config, True)


def test_episodes_that_do_not_fit_are_named(recorded, tmp_path):
    held_out = replace(recorded, seeds=recorded.seeds + 2_000_000_000)
    save_episodes(tmp_path / "held-out.parquet", held_out)
    with pytest.raises(UserError, match=r"pretrain\.source = .*, row 0: it begins at a held-out start state"):
        check(config_of({"source": str(tmp_path / "held-out.parquet"), "num_trajectories": 0}), True)
    save_episodes(tmp_path / "few.parquet", recorded.rows(slice(3)))
    with pytest.raises(UserError, match=r"holds 3 episodes, pretrain\.num_trajectories = 12"):
        check(config_of({"source": str(tmp_path / "few.parquet")}), True)


def test_alignment_settings_do_not_redo_it():
    config = load_config("demo", ["pretrain.steps=10", "pretrain.num_trajectories=200"])
    other = load_config("demo", ["pretrain.steps=10", "pretrain.num_trajectories=200", "world_model.alignment.steps=7"])
    from cluster.recipes.pretraining.pretrain import PRETRAIN
    from cluster.recipes.stage import settings_of

    assert settings_of(PRETRAIN, config) == settings_of(PRETRAIN, other)
    assert "pretrain.source" not in settings_of(PRETRAIN, config)
