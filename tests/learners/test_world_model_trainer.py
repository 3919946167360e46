"""The world model's trainer: it learns, averages, schedules, and survives a bad step."""

import numpy as np
import pytest
import torch
from torch import nn

from learners.supervised.world_model_training import (
    ExponentialAverage,
    WindowDraw,
    WorldModelTrainer,
    learning_rate_factor,
    train_world_model,
)
from tests.support.small_world import small_world_model
from wmpo_ray.config.run import WorldModelTrainingConfig
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.pocket.play import collect_play

CONFIG = WorldModelTrainingConfig(steps=25, batch_size=8, learning_rate=3e-3, warmup_steps=4, ema_decay=0.9)


@pytest.fixture(scope="module")
def sampler() -> WindowSampler:
    play = collect_play(24, 12, seed=0)
    return WindowSampler(play.frames, play.actions, np.full(24, 12), context_frames=2, chunk_length=4)


def make_trainer(sampler: WindowSampler, seed: int = 0) -> WorldModelTrainer:
    trainer = WorldModelTrainer(small_world_model(), CONFIG, seed=seed)
    trainer.use([sampler], [1.0])
    return trainer


def weights(trainer: WorldModelTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.network.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_lowers_the_loss_on_a_fixed_batch(sampler):
    world = small_world_model()
    trainer = WorldModelTrainer(world, CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    batch = sampler.draw(16, generator)
    clip = world.codec.encode(batch.clip)
    noise, t = torch.randn(clip.shape, generator=generator), torch.linspace(0.1, 1, 16)

    @torch.no_grad()
    def loss() -> float:
        return float(world.denoiser.loss(clip, 2, batch.actions, t, noise).mean())

    before = loss()
    metrics = train_world_model(trainer, [sampler], [1.0])
    assert loss() < 0.6 * before
    assert trainer.num_steps == CONFIG.steps and metrics["skipped_steps"] == 0


def test_a_run_is_a_function_of_its_seed(sampler):
    runs = []
    for seed in (0, 0, 1):
        trainer = make_trainer(sampler, seed)
        for _ in range(3):
            trainer.step()
        runs.append(weights(trainer))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_batches_take_their_share_of_every_source(sampler):
    trainer = WorldModelTrainer(small_world_model(), CONFIG, seed=0)
    marked = WindowSampler(np.full_like(sampler.frames, 7), sampler.actions, np.full(24, 12), 2, 4)
    trainer.use([sampler, marked], [0.75, 0.25])
    assert (trainer.draw().own.clip == 7).flatten(1).all(1).tolist() == [False] * 6 + [True] * 2


def test_training_ends_with_the_averaged_weights(sampler):
    trainer = WorldModelTrainer(small_world_model(), CONFIG.model_copy(update={"steps": 4}), seed=0)
    train_world_model(trainer, [sampler], [1.0])
    averaged = weights(trainer)
    trainer.average.swap()
    assert not same(averaged, weights(trainer))
    trainer.average.swap()
    assert same(averaged, weights(trainer))


def test_the_average_follows_its_recursion():
    parameter = nn.Parameter(torch.zeros(1))
    average, expected = ExponentialAverage([parameter], decay=0.5), 0.0
    for n in range(1, 30):
        with torch.no_grad():
            parameter.fill_(float(n))
        average.update()
        # Short memory at first, so that the start does not linger.
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert float(average.average[0]) == pytest.approx(expected, rel=1e-5)


def test_learning_rate_rises_stays_and_falls():
    config = WorldModelTrainingConfig(steps=100, warmup_steps=10, decay_share=0.4, final_share=0.05)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[9:61] == pytest.approx([1.0] * 52)
    fall = np.diff(factors[60:99])
    assert (fall <= 0).all() and factors[80] == pytest.approx(0.5)
    assert min(factors[60:]) == pytest.approx(0.05)
    flat = WorldModelTrainingConfig(steps=100, warmup_steps=1, decay_share=0.0)
    assert {learning_rate_factor(step, flat) for step in range(100)} == {1.0}


def test_the_optimizer_uses_that_learning_rate(sampler):
    trainer = make_trainer(sampler)
    for step in range(3):
        trainer.step()
        assert trainer.optimizer.param_groups[0]["lr"] == CONFIG.learning_rate * learning_rate_factor(step, CONFIG)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(sampler, bad):
    trainer = make_trainer(sampler)
    trainer.step()
    before, average = weights(trainer), [a.clone() for a in trainer.average.average]
    hook = trainer.network.x_embedder.proj.weight.register_hook(lambda gradient: gradient * bad)
    trainer.step()
    assert trainer.num_skipped == 1 and trainer.num_steps == 2
    assert same(before, weights(trainer)) and same(average, trainer.average.average)
    hook.remove()
    trainer.step()
    assert trainer.num_skipped == 1 and not same(before, weights(trainer))
    assert all(torch.isfinite(w).all() for w in weights(trainer))


def test_own_context_is_what_the_model_would_imagine(sampler):
    """The context of a self-conditioned sample is the end of its previous chunk, imagined; the rest stays real."""
    world = small_world_model()
    trainer = WorldModelTrainer(world, CONFIG.model_copy(update={"self_context_share": 1.0}), seed=0)
    batch = sampler.draw(8, torch.Generator().manual_seed(0))
    assert 0 < batch.has_previous.sum() < 8
    clip, actions = trainer._latents(WindowDraw(8, batch))
    real = world.codec.encode(batch.clip)
    own = (clip[:, :, :2] != real[:, :, :2]).flatten(1).any(1)
    assert torch.equal(own, batch.has_previous)
    assert torch.equal(clip[:, :, 2:], real[:, :, 2:]) and torch.equal(actions, batch.actions)
