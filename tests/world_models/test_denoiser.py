"""What the denoiser shows the network and makes of its output."""

import math

import pytest
import torch
from torch import nn

from tests.support.small_world import EMBEDDED, random_chunk, scene_starts, small_world_model
from wmpo_ray.config.models import WorldModelTrainingConfig
from wmpo_ray.world_models.denoiser import Conditioning, Denoiser, action_features, num_action_features
from wmpo_ray.world_models.diffusion import initialise
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig
from wmpo_ray.world_models.pretrained_world import as_aligned


def latents(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, num_frames, 16, 16, generator=torch.Generator().manual_seed(seed))


class KnownOutput(nn.Module):
    """Stands for a network that has learned a given answer."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def encode_conditioning(self, x, height=None, width=None):
        return None

    def forward_cached(self, x, timestep, actions, cache, height=None, width=None):
        return self.output


@torch.no_grad()
def test_one_step_of_sample_prediction_returns_the_predicted_sample():
    world = small_world_model(num_steps=1)
    denoiser, noise, context = world.denoiser, latents(4, 1), latents(2, 2)
    actions = random_chunk(2)
    conditioning = denoiser.condition(context)
    # At t = 1 the input is scaled to zero.
    features = action_features(actions, EMBEDDED.action_bands)
    output = denoiser.network.forward_cached(
        torch.zeros_like(noise), torch.full((2,), 1000.0), features, conditioning.cache
    )
    sampled = world.sampler.sample(denoiser, noise, actions, conditioning)
    assert (sampled - (output + context[:, :, -1:])).abs().max() <= 1e-5
    assert output.abs().max() > 0.1


@pytest.mark.parametrize(("scaling", "hidden"), [(True, True), (False, False)])
@torch.no_grad()
def test_input_scaling_hides_the_noise_at_its_full_level(scaling, hidden):
    world = small_world_model(EMBEDDED.model_copy(update={"input_scaling": scaling}), num_steps=1)
    conditioning = world.denoiser.condition(latents(2))
    one, other = (
        world.sampler.sample(world.denoiser, latents(4, seed), random_chunk(2), conditioning) for seed in (5, 6)
    )
    assert bool((one - other).abs().max() <= 1e-5) is hidden


@torch.no_grad()
def test_a_residual_network_of_zeros_keeps_the_last_frame():
    world = small_world_model(num_steps=3)
    initialise(world.denoiser.network)
    starts = scene_starts(3)
    state, _ = world.start(starts)
    for chunk in range(2):
        state, made = world.step_chunk(state, random_chunk(3, chunk), [1, 2, 3])
        for start, imagined in zip(starts, made.frames, strict=True):
            assert (imagined == start.frames[-1]).all()


@pytest.mark.parametrize("residual", [True, False])
def test_velocity_and_sample_prediction_of_the_same_truth_agree(residual):
    clean, noise, last = latents(4, 1), latents(4, 2), latents(1, 3)
    t = torch.tensor([0.9, 0.25])
    noisy = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
    by_velocity = Denoiser(KnownOutput(clean - noise), DenoiserConfig())
    answer = clean - last if residual else clean
    by_sample = Denoiser(KnownOutput(answer), DenoiserConfig(prediction="sample", residual=residual))
    conditioning = Conditioning(None, last)
    one, other = (d.velocity(noisy, t, random_chunk(2), conditioning) for d in (by_velocity, by_sample))
    assert (one - (clean - noise)).abs().max() == 0
    assert (other - one).abs().max() <= 1e-5


def test_the_loss_of_a_network_of_zeros_is_the_distance_to_its_target():
    clip, noise, t = latents(6, 1), latents(6, 2), torch.tensor([0.3, 1.0])
    future, last = clip[:, :, 2:], clip[:, :, 1:2]
    targets = {
        (): future - noise[:, :, 2:],
        ("sample",): future,
        ("sample", "residual"): future - last,
    }
    for options, target in targets.items():
        config = DenoiserConfig(
            prediction="sample" if "sample" in options else "velocity", residual="residual" in options
        )
        world = small_world_model(config)
        initialise(world.denoiser.network)
        loss = world.denoiser.loss(clip, 2, random_chunk(2), t, noise)
        assert torch.allclose(loss, target.square().mean((1, 2, 3, 4)), rtol=1e-5), options


def test_changed_pixels_weigh_more():
    config = EMBEDDED.model_copy(update={"changed_pixel_weight": 6.0, "changed_pixel_threshold": 0.2})
    world = small_world_model(config)
    initialise(world.denoiser.network)
    clip = latents(1).expand(-1, -1, 6, -1, -1).clone()
    clip[:, :, 2:, 0, 0] += 0.1  # below the threshold
    clip[:, 0, 2:, 5, 5] += 0.3  # one channel is enough
    loss = world.denoiser.loss(clip, 2, random_chunk(2), torch.ones(2), latents(6, 1))
    expected = (3 * 0.1**2 + 6.0 * 0.3**2) / (3 * 16 * 16)
    assert loss.tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_the_loss_at_full_noise_does_not_see_the_future():
    """With input scaling, what is predicted at t = 1 depends on context and actions alone."""
    world = small_world_model()
    clip, noise = latents(6, 1), latents(6, 2)
    other = clip.clone()
    other[:, :, 2:] = latents(4, 9)
    outputs = []
    world.denoiser.network.register_forward_hook(lambda module, args, output: outputs.append(output))
    for shown in (clip, other):
        world.denoiser.loss(shown, 2, random_chunk(2), torch.ones(2), noise)
    assert torch.equal(outputs[0][:, :, 2:], outputs[1][:, :, 2:])


@torch.no_grad()
def test_sampling_noise_perturbs_the_context_but_not_the_residual():
    context, noise = latents(2, 1), latents(2, 2)
    noisy = small_world_model().denoiser.condition(context, noise)
    clean = small_world_model(EMBEDDED.model_copy(update={"sampling_noise": 0.0})).denoiser.condition(context, noise)
    assert not torch.equal(noisy.cache.blocks[0].key, clean.cache.blocks[0].key)
    assert torch.equal(noisy.last_frame, context[:, :, -1:])


def test_times_are_in_range_and_full_noise_has_its_share():
    for distribution in ("uniform", "logit_normal"):
        config = DenoiserConfig(time_distribution=distribution, pure_noise_share=0.3)
        denoiser = Denoiser(KnownOutput(torch.zeros(1)), config)
        t = denoiser.draw_times(4000, torch.Generator().manual_seed(0))
        assert (t > 0).all() and (t <= 1).all()
        assert float((t == 1).float().mean()) == pytest.approx(0.3, abs=0.04)
        assert float(t[t < 1].mean()) == pytest.approx(0.5, abs=0.03)


def test_action_features():
    actions = random_chunk(2)
    assert torch.equal(action_features(actions, 0), actions)
    features = action_features(actions, 3)
    assert features.shape[-1] == num_action_features(3, 3)
    assert torch.equal(features[..., :3], actions)
    # 3 sines and 3 cosines for each dimension; the slowest has half a period over [-1, 1].
    assert torch.allclose(features[..., 3], (math.pi * actions[..., 0]).sin(), atol=1e-6)
    assert torch.allclose(features[..., 3:12].square() + features[..., 12:].square(), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_bf16_stays_close_to_fp32():
    one, other = small_world_model(), small_world_model(EMBEDDED.model_copy(update={"precision": "bf16"}))
    noise, context, actions = latents(4, 1), latents(2, 2), random_chunk(2)
    results = [w.sampler.sample(w.denoiser, noise, actions, w.denoiser.condition(context)) for w in (one, other)]
    assert results[1].dtype == torch.float32
    assert 0 < (results[0] - results[1]).abs().mean() < 0.05


@torch.no_grad()
def test_a_clip_that_shares_its_action_knows_no_order_of_actions():
    """Of two chunks with the same actions in another order a model imagines the same; otherwise not."""
    actions = random_chunk(2)
    for level, is_same in (("clip", True), ("frame", False)):
        world = small_world_model(EMBEDDED.model_copy(update={"action_level": level}), num_steps=1)
        conditioning = world.denoiser.condition(latents(2))
        one, other = (
            world.sampler.sample(world.denoiser, latents(4, 1), each, conditioning)
            for each in (actions, actions.flip(1))
        )
        assert bool((one - other).abs().max() <= 1e-5) is is_same
        clip, t, noise = latents(6), torch.full((2,), 0.5), latents(6, 3)
        losses = [world.denoiser.loss(clip, 2, each, t, noise) for each in (actions, actions.flip(1))]
        assert torch.allclose(*losses, atol=1e-6) is is_same


def test_alignment_changes_what_it_is_told_to_and_nothing_else():
    own = EMBEDDED.model_copy(update={"conditioning_noise": 0.07, "sampling_noise": 0.07})
    assert as_aligned(own, WorldModelTrainingConfig()) == own
    changed = as_aligned(own, WorldModelTrainingConfig(conditioning_noise=0.0, action_level="clip"))
    expected = {"conditioning_noise": 0.0, "sampling_noise": 0.0, "action_level": "clip"}
    assert changed == own.model_copy(update=expected)
    silent = own.model_copy(update={"sampling_noise": 0.0})
    assert as_aligned(silent, WorldModelTrainingConfig(conditioning_noise=0.2)).sampling_noise == 0.0
