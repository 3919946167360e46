"""Pretraining keeps the best weights on the way, never sees what is held out, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.supervised.jobs import PretrainJob
from learners.supervised.pretraining import PretrainSource, PretrainTrainer, decisive_windows, split_rows
from learners.supervised.training_actor import TrainingActor
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout.evaluation import rollout_expert
from wmpo_ray.rollout.held_out_judge import HeldOutJudge
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

STEPS, EVERY = 24, 6
SETTINGS = {
    "environment": {"horizon": 8},
    "world_model": {
        "pretrained": "",
        "network": {"hidden_size": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
        "denoiser": {"prediction": "sample", "input_scaling": True, "residual": True},
        "sampler": {"num_steps": 1},
    },
    "pretrain": {
        "steps": STEPS,
        "batch_size": 4,
        "warmup_steps": 2,
        "measure_every": EVERY,
        "num_held_out": 4,
        "learning_rate": 3e-3,
        "source": "episodes.parquet",
    },
}


def config_of(**pretrain) -> Config:
    return Config.model_validate({**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **pretrain}})


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return rollout_expert(PocketEnvironment(8), np.arange(16), 2.0, (0, "demos"))


class ScriptedJudge(HeldOutJudge):
    """Agreement as it was written down; it remembers the weights that it was asked about."""

    def __init__(self, episodes: Episodes, agreements: list[float]):
        super().__init__(episodes, 0, None, None)
        self.left, self.seen = list(agreements), []

    def metrics(self, world: DiffusionWorldModel) -> dict[str, float]:
        self.seen.append(weights(world))
        return {"psnr_db": 20.0, "label_agreement": self.left.pop(0)} if self.left else {"psnr_db": 20.0}


def weights(world: DiffusionWorldModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in world.denoiser.network.parameters()]


def train(config: Config, episodes: Episodes, judge: HeldOutJudge) -> PretrainTrainer:
    trainer = PretrainTrainer(config, [PretrainSource(episodes, None, 1.0)], judge, torch.device("cpu"))
    while trainer.num_steps < config.pretrain.steps:
        trainer.step()
    return trainer


@pytest.mark.parametrize(
    ("agreements", "kept"), [([0.5, 0.9, 0.2, 0.1], 1), ([0.5, 0.5, 0.2, 0.5], 3)], ids=["best", "latest of equals"]
)
def test_the_weights_that_agree_most_are_kept(episodes, tmp_path, agreements, kept):
    judge = ScriptedJudge(episodes.rows(slice(4)), agreements)
    metrics = train(config_of(), episodes.rows(slice(4, None)), judge).finish(tmp_path)
    assert len(judge.seen) == STEPS // EVERY and metrics["step"] == EVERY * (kept + 1)
    assert metrics["score"] == metrics["label_agreement"] == agreements[kept]
    assert metrics["scores"] == {str(EVERY * (i + 1)): agreement for i, agreement in enumerate(agreements)}
    saved = weights(DiffusionWorldModel.load(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(saved, judge.seen[kept], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(saved, judge.seen[0], strict=True))


@pytest.mark.parametrize(("agreements", "choose_by"), [([], "auto"), ([0.9, 0.1, 0.1, 0.1], "loss")])
def test_without_anything_that_judges_the_lowest_loss_counts(episodes, tmp_path, agreements, choose_by):
    judge = ScriptedJudge(episodes.rows(slice(4)), agreements)
    metrics = train(config_of(choose_by=choose_by), episodes.rows(slice(4, None)), judge).finish(tmp_path)
    assert metrics["score"] == -metrics["held_out_loss"] and metrics["step"] > EVERY


def pretrain(episodes: Episodes, folder: Path, checkpoints: Path, calls: int | None = None, every: int = 7) -> tuple:
    """Advance a training actor to the end, or `calls` times: metrics, file of weights, steps reported."""
    config = config_of().model_copy(
        update={"checkpoint": Config.model_validate({"checkpoint": {"every_training_steps": every}}).checkpoint}
    )
    data = {"source": "episodes.parquet", "environment": "pocket", "num_episodes": 12, "num_held_out": 4}
    actor = TrainingActor(config, str(checkpoints))
    steps = [actor.begin(PretrainJob(config, (PretrainSource(episodes, None, 1.0),), None, data, folder))[0]]
    while steps[-1] < STEPS and (calls is None or len(steps) <= calls):
        steps.append(actor.advance()[0])
    if calls is not None:
        return {}, b"", steps
    metrics = {key: value for key, value in actor.finish().items() if key != "seconds"}
    return metrics, (folder / "diffusion_pytorch_model.safetensors").read_bytes(), steps


def test_a_pretraining_goes_on_where_its_actor_was_lost(episodes, tmp_path):
    straight = pretrain(episodes, tmp_path / "straight", tmp_path / "never", every=0)
    pretrain(episodes, tmp_path / "lost", tmp_path / "checkpoints", calls=2)
    resumed = pretrain(episodes, tmp_path / "resumed", tmp_path / "checkpoints")
    assert resumed[2][0] == 14 and resumed[:2] == straight[:2]
    assert not (tmp_path / "lost").exists()
    assert {"grasp_agreement", "placement_agreement", "held_out_loss"} <= straight[0].keys()
    card = (tmp_path / "straight" / "card.json").read_text()
    assert '"learning_rate": 0.003' in card and '"torch"' in card and '"held_out_loss"' in card
    assert "12 episodes of episodes.parquet" in (tmp_path / "straight" / "README.md").read_text()


def test_what_is_held_out_is_not_trained_on(episodes):
    train_rows, held_out = split_rows(16, 4, seed=0)
    assert sorted([*train_rows, *held_out]) == list(range(16)) and len(held_out) == 4
    assert held_out.tolist() != split_rows(16, 4, seed=1)[1].tolist()
    job = PretrainJob(config_of(), (PretrainSource(episodes, None, 1.0),), None, {}, Path("nowhere"))
    trainer = job.begin(share=PretrainTrainer.__init__.__defaults__[0], device=torch.device("cpu"))
    (sampler,) = trainer._samplers
    assert len(sampler.frames) == 12
    assert np.array_equal(np.asarray(trainer.judge.episodes.frames), episodes.frames[held_out])
    with pytest.raises(UserError, match=r"pretrain\.num_held_out = 16: there are 16 episodes"):
        split_rows(16, 16, 0)


def test_a_window_is_decisive_if_any_of_its_steps_is():
    contact = np.zeros((2, 6), bool)
    contact[0, 3] = True
    assert decisive_windows(contact, 2).tolist() == [[False, False, True, True, False, False], [False] * 6]


def test_weights_are_saved_in_the_precision_that_is_asked_for(episodes, tmp_path):
    from safetensors.torch import load_file

    judge = ScriptedJudge(episodes.rows(slice(4)), [0.5])
    config = config_of(weights="bfloat16", steps=1)
    train(config, episodes.rows(slice(4, None)), judge).finish(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_every_batch_has_its_share_of_each_source_and_nothing_held_out(episodes):
    one, other, held_out = (episodes.rows(rows) for rows in (slice(6), slice(6, 12), slice(12, None)))
    sources = (PretrainSource(one, np.ones(one.actions.shape[:2], bool), 3.0), PretrainSource(other, None, 1.0))
    trainer = PretrainJob(config_of(batch_size=8), sources, held_out, {}, Path("nowhere")).begin(
        share=PretrainTrainer.__init__.__defaults__[0], device=torch.device("cpu")
    )
    assert np.array_equal(np.asarray(trainer.judge.episodes.frames), np.asarray(held_out.frames))
    assert trainer.judge.has_labels, "their success is known, that of play is not"
    windows = trainer.draw().own.clip.numpy()
    assert len(windows) == 8
    found = [[_is_of(window, part) for part in (one, other)] for window in windows]
    assert [first for first, _ in found] == [True] * 6 + [False] * 2
    assert [second for _, second in found] == [False] * 6 + [True] * 2


def _is_of(window: np.ndarray, episodes: Episodes) -> bool:
    """Whether the last two frames of a window follow each other in one of the episodes."""
    frames = np.asarray(episodes.frames)
    return bool(((frames[:, :-1] == window[-2]) & (frames[:, 1:] == window[-1])).all((2, 3, 4)).any())


def test_a_model_that_was_pretrained_before_is_kept_where_nothing_beats_it(episodes, tmp_path):
    judge = ScriptedJudge(episodes.rows(slice(4)), [0.5])
    train(config_of(steps=6), episodes.rows(slice(4, None)), judge).finish(tmp_path)
    before = weights(DiffusionWorldModel.load(tmp_path))
    config = config_of()
    world = config.world_model.model_copy(update={"pretrained": str(tmp_path)})
    config = config.model_copy(update={"world_model": world})
    sources = [PretrainSource(episodes.rows(slice(4, None)), None, 1.0)]
    trainer = PretrainTrainer(
        config, sources, ScriptedJudge(episodes.rows(slice(4)), [0.8, 0.1, 0.7, 0.2, 0.3]), torch.device("cpu")
    )
    trainer.measure_before()
    trainer.measure_before()
    while trainer.num_steps < STEPS:
        trainer.step()
    metrics = trainer.finish(tmp_path / "after")
    assert metrics["step"] == 0 and metrics["scores"]["0"] == metrics["score"] == 0.8 and len(metrics["scores"]) == 5
    after = weights(DiffusionWorldModel.load(tmp_path / "after"))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
