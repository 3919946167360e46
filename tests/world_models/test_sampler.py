"""Solvers of the rectified flow: their order, their independence of the batch, and that Euler is plain Euler."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.support.small_world import EMBEDDED, random_chunk, scene_starts, small_world_model
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.world_models.denoiser import TIME_SCALE, Denoiser
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, SamplerConfig, Solver
from wmpo_ray.world_models.sampler import SCHEDULERS, RectifiedFlowSampler

SOLVERS = list(SCHEDULERS)
ORDER = {"euler": 1, "unipc": 2}
MEAN, DEVIATION = 0.7, 1.0


class GaussianFlow:
    """The flow of data N(MEAN, DEVIATION^2): linear in x, and what starts at noise z ends at MEAN + DEVIATION z."""

    def __init__(self):
        self.times: list[float] = []

    def velocity(self, noisy: Tensor, t: Tensor, actions: None, conditioning: None) -> Tensor:
        self.times.append(float(t[0]))
        t = t.view(-1, 1, 1, 1, 1)
        variance = ((1 - t) * DEVIATION) ** 2 + t**2
        sample = MEAN + (1 - t) * DEVIATION**2 / variance * (noisy - (1 - t) * MEAN)
        return (sample - noisy) / t


class StraightFlow(GaussianFlow):
    """Every noise goes to zero on a straight line."""

    def velocity(self, noisy, t, actions, conditioning):
        return -noisy / t.view(-1, 1, 1, 1, 1)


def sampler(solver: str, num_steps: int, shift: float = 1.0) -> RectifiedFlowSampler:
    return RectifiedFlowSampler(SamplerConfig(solver=solver, num_steps=num_steps, shift=shift))


def noise(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def error(solver: str, num_steps: int, shift: float) -> float:
    z = noise()
    return float(
        (sampler(solver, num_steps, shift).sample(GaussianFlow(), z, None, None) - MEAN - DEVIATION * z).norm()
    )


def test_every_solver_of_the_config_has_a_scheduler():
    assert set(SOLVERS) == set(get_args(Solver)) == set(ORDER)


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_order_of_convergence_is_what_the_solver_claims(solver, shift):
    order = math.log2(error(solver, 80, shift) / error(solver, 160, shift))
    assert abs(order - ORDER[solver]) < 0.25, order


@pytest.mark.parametrize("num_steps", [5, 10, 30])
def test_the_second_order_is_nearer_than_euler_in_as_many_evaluations(num_steps):
    assert error("unipc", num_steps, 1.0) < 0.8 * error("euler", num_steps, 1.0)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_flow_is_followed_exactly(solver, num_steps):
    assert sampler(solver, num_steps, 2.0).sample(StraightFlow(), noise(), None, None).abs().max() <= 1e-5


@pytest.mark.parametrize("num_steps", [1, 2, 30])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_network_is_asked_as_often_as_said_and_at_the_shifted_times(solver, num_steps):
    flow, ours = GaussianFlow(), sampler(solver, num_steps, 0.25)
    ours.sample(flow, noise(), None, None)
    plain = [1 - i / num_steps for i in range(num_steps)]
    assert len(flow.times) == ours.evaluations_per_chunk == num_steps
    assert flow.times == pytest.approx([0.25 * t / (1 - 0.75 * t) for t in plain], abs=1e-5)


@pytest.mark.parametrize(("num_steps", "shift"), [(1, 1.0), (3, 1.0), (10, 0.5), (30, 1.0)])
def test_euler_is_plain_euler_to_the_last_bit(num_steps, shift):
    times = torch.tensor([1.0 - i / num_steps for i in range(num_steps)])
    times = shift * times / (1 + (shift - 1) * times)
    steps = torch.cat([times, torch.zeros(1)]).diff()
    flow, x = GaussianFlow(), noise()
    for time, step in zip(times * TIME_SCALE / TIME_SCALE, steps, strict=True):
        x = x + step * -flow.velocity(x, time.expand(2), None, None)
    assert torch.equal(sampler("euler", num_steps, shift).sample(flow, noise(), None, None), x)


# -- with a network ----------------------------------------------------------------------------------------------


def small(solver: str, denoiser: DenoiserConfig) -> DiffusionWorldModel:
    return small_world_model(denoiser).with_sampler(SamplerConfig(solver=solver, num_steps=4))


def imagine(world: DiffusionWorldModel, rows: list[int]) -> Tensor:
    """Two chunks, so that what a solver remembers of the first would show in the second."""
    starts = scene_starts(4)
    state, _ = world.start([starts[i] for i in rows])
    for chunk in range(2):
        state, _ = world.step_chunk(state, random_chunk(4, chunk)[rows], [10 * i + chunk for i in rows])
    return state.latents


@pytest.mark.parametrize("denoiser", [EMBEDDED, DenoiserConfig()], ids=["embedded", "published"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trajectory_depends_on_its_own_noise_alone(solver, denoiser):
    world = small(solver, denoiser)
    together = imagine(world, [0, 1, 2, 3])
    assert torch.equal(imagine(world, [0, 1, 2, 3]), together)
    for rows in ([2], [3, 0]):
        assert (imagine(world, rows) - together[rows]).abs().max() <= 1e-5


class WholeClip(Denoiser):
    """Runs the conditioning frames through the network in every step."""

    def __init__(self, denoiser: Denoiser, context: Tensor):
        super().__init__(denoiser.network, denoiser.config)
        self.context = context

    def velocity(self, noisy, t, actions, conditioning):
        clip = torch.cat([self.context, noisy], 2)
        c = self.context.shape[2]
        mask = (torch.arange(clip.shape[2])[None] >= c).expand(len(clip), -1)
        return self.network(clip, t * TIME_SCALE, actions, mask)[:, : noisy.shape[1], c:]


@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_the_conditioning_cache_is_exact_whatever_the_solver(solver):
    world = small(solver, DenoiserConfig())
    context, actions = world.start(scene_starts(2))[0].latents, random_chunk(2)
    z = keyed_noise([1, 2], (context.shape[1], 4, *context.shape[3:]))
    cached = world.sampler.sample(world.denoiser, z, actions, world.denoiser.condition(context))
    whole = world.sampler.sample(WholeClip(world.denoiser, context), z, actions, None)
    assert (cached - whole).abs().max() <= 1e-5
    assert (
        world.sampler.sample(world.denoiser, z, -actions, world.denoiser.condition(context)) - whole
    ).abs().max() > 0.01


def test_another_solver_shares_network_and_codec_and_is_kept_in_the_files(tmp_path):
    world = small_world_model(num_steps=3)
    config = SamplerConfig(solver="unipc", num_steps=5, shift=0.5)
    other = world.with_sampler(config)
    assert other.denoiser is world.denoiser and other.codec is world.codec and world.sampler.config.num_steps == 3
    other.save(tmp_path / "world")
    loaded = DiffusionWorldModel.load(tmp_path / "world")
    assert loaded.sampler.config == config
    assert torch.equal(imagine(loaded, [0, 1]), imagine(other, [0, 1]))


@torch.no_grad()
def test_few_steps_of_the_second_order_are_nearer_on_the_shipped_model():
    """In latents, to 30 Euler steps from the same noise."""
    world = DiffusionWorldModel.load("embedded-a")
    context, actions = world.start(scene_starts(4))[0].latents, random_chunk(4)
    z = keyed_noise([1, 2, 3, 4], (context.shape[1], 4, *context.shape[3:]))
    conditioning = world.denoiser.condition(context)

    def sample(solver: str, num_steps: int) -> Tensor:
        return sampler(solver, num_steps).sample(world.denoiser, z, actions, conditioning)

    many = sample("euler", 30)
    for num_steps in (5, 8):
        assert (sample("unipc", num_steps) - many).norm() < 0.9 * (sample("euler", num_steps) - many).norm()
