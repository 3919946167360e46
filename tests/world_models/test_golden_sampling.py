"""Sampling and training loss give the published numbers."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.support.golden import max_difference, published_network, tensors
from wmpo_ray.world_models.denoiser import TIME_SCALE, Denoiser
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, SamplerConfig
from wmpo_ray.world_models.sampler import RectifiedFlowSampler, resolution_shift

SAMPLER_TOLERANCE = 5e-5
CONTEXT_FRAMES = 4


def setup(num_steps: int, size: int) -> tuple[Denoiser, RectifiedFlowSampler]:
    denoiser = Denoiser(published_network(), DenoiserConfig(), (size, size))
    return denoiser, RectifiedFlowSampler(SamplerConfig(num_steps=num_steps, shift=resolution_shift(size, size)))


@pytest.mark.parametrize(("name", "num_steps", "size"), [("s30", 30, 256), ("s10", 10, 256), ("s10_otherres", 10, 128)])
@torch.no_grad()
def test_samples_and_times(name, num_steps, size):
    data = tensors("sampler")
    denoiser, sampler = setup(num_steps, size)
    samples = sampler.sample(denoiser, data["noise"], data["y"], denoiser.condition(data["cond_latents"]))
    assert max_difference(samples, data[f"{name}.samples"][:, :, CONTEXT_FRAMES:]) <= SAMPLER_TOLERANCE
    assert max_difference(sampler.scheduler.timesteps, data[f"{name}.timesteps"][:, 0]) <= 1e-3


@torch.no_grad()
def test_rollout_over_three_chunks_keeps_the_newest_latents():
    data = tensors("sampler")
    denoiser, sampler = setup(10, 256)
    context = data["rollout.init_latent"].expand(-1, -1, CONTEXT_FRAMES, -1, -1)
    for chunk in range(3):
        conditioning = denoiser.condition(context)
        latents = sampler.sample(denoiser, data[f"rollout.noise{chunk}"], data[f"rollout.y{chunk}"], conditioning)
        assert max_difference(latents, data[f"rollout.pred{chunk}"]) <= SAMPLER_TOLERANCE, chunk
        context = latents[:, :, -CONTEXT_FRAMES:]


def test_training_loss_and_its_gradients():
    data = tensors("train_loss")
    denoiser, _ = setup(10, 256)
    losses = denoiser.loss(data["x_start"], CONTEXT_FRAMES, data["y"], data["t"] / TIME_SCALE, data["noise"])
    assert max_difference(losses, data["loss_per_sample"]) <= 5e-6
    assert max_difference(losses.mean(), data["loss_mean"]) <= 5e-6
    losses.mean().backward()
    parameters = dict(denoiser.network.named_parameters())
    for key in (key for key in data if key.startswith("grad.")):
        expected = data[key]
        assert max_difference(parameters[key.removeprefix("grad.")].grad, expected) <= 5e-6, key
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1e9)
    assert float(norm) == pytest.approx(float(data["grad_global_norm"]), rel=1e-5)


def test_parameters_that_take_no_part_get_no_gradient():
    data = tensors("train_loss")
    denoiser, _ = setup(10, 256)
    denoiser.loss(data["x_start"], 4, data["y"], data["t"] / TIME_SCALE, data["noise"]).mean().backward()
    for name, parameter in denoiser.network.named_parameters():
        unused = ".cross_attn." in name or name.startswith(("y_embedder.", "fps_embedder."))
        if unused:
            assert parameter.grad is None, name
        elif parameter.requires_grad and "none_action" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_shift_of_the_time_axis_is_the_schedulers():
    data = tensors("train_loss")
    sizes = {"r256": (256, 256), "r512": (512, 512), "other": data["timestep_transform.other_hw"].tolist()}
    for name, (height, width) in sizes.items():
        scheduler = FlowMatchEulerDiscreteScheduler(shift=resolution_shift(height, width))
        scheduler.set_timesteps(sigmas=(data["timestep_transform.input"].double() / TIME_SCALE).tolist())
        assert max_difference(scheduler.timesteps, data[f"timestep_transform.{name}"]) <= 1e-3, name
    assert resolution_shift(256, 256) == 1.0
