"""The action map, and that training and sampling show the network the same thing."""

from __future__ import annotations

import torch

from wmpo_ray.world_models.denoiser import MAP_CHANNELS, action_map
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig

EMBEDDED = DiffusionConfig.model_validate(
    {
        "network": {"hidden_size": 32, "depth": 2, "num_heads": 2},
        "denoiser": {
            "prediction": "sample",
            "input_scaling": True,
            "residual": True,
            "conditioning_noise": 0.0,
            "action_bands": 2,
            "action_map": True,
        },
        "sampler": {"num_steps": 1},
    }
)


def make_world_model() -> DiffusionWorldModel:
    world_model = DiffusionWorldModel.create(EMBEDDED, 3, 4, seed=0)
    torch.nn.init.normal_(world_model.denoiser.network.final_layer.linear.weight, std=0.2)
    return world_model


def test_the_square_stands_where_the_action_points():
    actions = torch.tensor([[[0.0, 0.0, 1.0], [-0.5, 0.25, -1.0]]])
    drawn = action_map(actions, 16, 16)
    assert drawn.shape == (1, MAP_CHANNELS, 2, 16, 16)
    square = drawn[0, 0]
    torch.testing.assert_close(square.sum((-1, -2)), torch.tensor([4.0, 4.0]))
    pixel = torch.arange(16) + 0.5
    for k, (x, y) in enumerate(((8.0, 8.0), (4.0, 10.0))):
        assert abs(float((square[k].sum(0) * pixel).sum() / 4) - x) < 1e-5
        assert abs(float((square[k].sum(1) * pixel).sum() / 4) - y) < 1e-5
    assert (drawn[0, 2, 0] == 1).all() and (drawn[0, 2, 1] == -1).all()
    torch.testing.assert_close(drawn[0, 1, 1], -square[1])


def test_a_fraction_of_a_pixel_is_visible():
    one, other = action_map(torch.tensor([[[0.0, 0.0, 1.0], [0.02, 0.0, 1.0]]]), 16, 16)[0, 0]
    assert (one - other).abs().max() > 0.1


def test_training_and_sampling_agree_on_the_prediction():
    world_model = make_world_model()
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 3, 6, 16, 16, generator=generator)
    actions = torch.rand(2, 4, 3, generator=generator) * 2 - 1
    noise = torch.randn(clip.shape, generator=generator)
    denoiser = world_model.denoiser
    with torch.no_grad():
        loss = denoiser.loss(clip, 2, actions, torch.ones(2), noise)
        conditioning = denoiser.condition(clip[:, :, :2])
        sample = world_model.sampler.sample(denoiser, noise[:, :, 2:], actions, conditioning)
    torch.testing.assert_close(loss, (sample - clip[:, :, 2:]).square().flatten(1).mean(1), atol=1e-5, rtol=1e-5)


def test_conditioning_frames_know_no_action():
    world_model = make_world_model()
    context = torch.randn(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    blocks = world_model.denoiser.condition(context).cache.blocks
    again = world_model.denoiser.condition(context).cache.blocks
    assert all(torch.equal(one.key, other.key) for one, other in zip(blocks, again, strict=True))
    assert world_model.denoiser.network.out_channels == 3


def test_saved_and_loaded_it_imagines_the_same(tmp_path):
    world_model = make_world_model()
    world_model.save(tmp_path / "model")
    loaded = DiffusionWorldModel.load(tmp_path / "model")
    for one, other in zip(world_model.denoiser.network.parameters(), loaded.denoiser.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loaded.denoiser.config == world_model.denoiser.config


def test_an_action_of_two_numbers_has_no_grip():
    actions = torch.tensor([[[0.5, -0.75]]])
    drawn = action_map(actions, 16, 16)
    assert torch.equal(drawn[:, :1], action_map(torch.tensor([[[0.5, -0.75, 1.0]]]), 16, 16)[:, :1])
    assert drawn[:, 0].sum() == 4 and not drawn[:, 1:].any()
