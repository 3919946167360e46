"""Frames of several views: where an action aims is drawn into each, and what is small counts more in the loss."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.supervised.changed_scenes import Augmentation
from learners.supervised.loop import WHOLE
from learners.supervised.world_model_training import WorldModelTrainer
from tests.support.small_world import small_world_model
from wmpo_ray.config.loading import validate
from wmpo_ray.config.run import WorldModelTrainingConfig
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.observations import StartState
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.layout import WHOLE_FRAME, FrameLayout, Mirror, PixelWeight, Shift, Target, View
from wmpo_ray.world_models import pretrained_world
from wmpo_ray.world_models.denoiser import action_map
from wmpo_ray.world_models.diffusion import SETTINGS_FILE, DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig
from wmpo_ray.world_models.pretrained_world import begin_world_model

# Actions (x, y, z, grip): the front shows y to the right, the side below x to the right, both z upwards.
FRONT, SIDE = Target((0, 1, 0, 0, 0), (0, 0, -1, 0, 0)), Target((1, 0, 0, 0, 0), (0, 0, -1, 0, 0))
ORANGE = ((1.0, 0.0, -1.0, 40.0), (1.0, -1.2, 0.0, 0.0))
LIFT = FrameLayout(
    (View(0, 0, 12, 24), View(12, 0, 12, 24)),
    Mirror(("columns", None), (1,)),
    (Shift((None, "columns"), 3, 0, 2 / 24), Shift(("columns", None), 3, 1, 2 / 24)),
    (FRONT, SIDE),
    (PixelWeight(ORANGE, 4.0, 20.0),),
)
SETTINGS = {
    "network": {"hidden_size": 24, "depth": 1, "num_heads": 2, "patch_size": [1, 6, 4]},
    "denoiser": {"prediction": "sample", "residual": True, "action_map": True, "changed_pixel_weight": 6.0},
    "sampler": {"num_steps": 1},
    "pretrained": "",
}


def make_world(layout: FrameLayout = LIFT) -> DiffusionWorldModel:
    config = DiffusionConfig.model_validate_json(json.dumps(SETTINGS))
    world = DiffusionWorldModel.create(config, 4, 4, 0, layout)
    weight = world.denoiser.network.final_layer.linear.weight
    torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return world


def centre(square: Tensor) -> tuple[float, float]:
    """Row and column of the mass of [H, W]."""
    rows, columns = torch.arange(square.shape[0]) + 0.5, torch.arange(square.shape[1]) + 0.5
    return float((square.sum(1) * rows).sum() / square.sum()), float((square.sum(0) * columns).sum() / square.sum())


def test_the_target_stands_where_each_view_shows_it():
    drawn = action_map(torch.tensor([[[-0.5, 0.25, 0.5, 1.0]]]), 24, 24, LIFT)[0, 0, 0]
    assert centre(drawn[:12]) == pytest.approx((3.0, 15.0)) and centre(drawn[12:]) == pytest.approx((3.0, 6.0))
    assert float(drawn[:12].sum()) == float(drawn[12:].sum()) == 4.0


def test_a_target_beyond_its_view_is_not_drawn_into_the_next_one():
    drawn = action_map(torch.tensor([[[0.0, 0.0, -1.0, 1.0]]]), 24, 24, LIFT)[0, 0, 0]
    assert float(drawn[:12].sum()) == float(drawn[12:].sum()) == 2.0, "half of the square is below the edge"


def test_a_view_may_have_no_target_and_a_constant_moves_one():
    layout = LIFT._replace(targets=(None, Target((0, 0, 0, 0, 0.5), (0, 0, 0, 0, 0))))
    drawn = action_map(torch.rand(1, 1, 4), 24, 24, layout)[0, 0, 0]
    assert not drawn[:12].any() and centre(drawn[12:]) == pytest.approx((6.0, 18.0))


def test_without_targets_the_first_two_numbers_are_the_place():
    actions = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    named = FrameLayout(targets=(Target((1, 0, 0, 0), (0, 1, 0, 0)),))
    assert torch.equal(action_map(actions, 16, 16, named), action_map(actions, 16, 16))


def test_latents_of_several_pixels_have_smaller_views():
    drawn = action_map(torch.tensor([[[-0.5, 0.25, 0.5, 1.0]]]), 12, 12, LIFT)[0, 0, 0]
    assert centre(drawn[:6]) == pytest.approx((1.5, 7.5)) and centre(drawn[6:]) == pytest.approx((1.5, 3.0))
    with pytest.raises(ValueError, match="between the pixels"):
        action_map(torch.zeros(1, 1, 4), 5, 5, LIFT)


def test_a_changed_scene_has_the_changed_map():
    """Drawing and augmentation commute, where nothing leaves the frame."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(32, 4, 4, generator=generator) * 1.2 - 0.6
    augmentation = Augmentation(LIFT)
    moves = augmentation.draw(32, WHOLE, generator)
    drawn = action_map(augmentation.actions(actions, moves), 24, 24, LIFT)
    moved = augmentation.frames(action_map(actions, 24, 24, LIFT), moves, rows=3)
    torch.testing.assert_close(drawn, moved, atol=1e-5, rtol=0)


# -- the world model --------------------------------------------------------------------------------------------------


def test_frames_that_are_not_square_are_imagined():
    world = DiffusionWorldModel.create(DiffusionConfig.model_validate_json(json.dumps(SETTINGS)), 2, 4, 0)
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 12, 24, 3), np.uint8)
    state, _ = world.start([StartState(clip, "") for clip in frames])
    _, transition = world.step_chunk(state, torch.zeros(2, 4, 2), [0, 1])
    assert transition.frames.shape == (2, 4, 12, 24, 3)


def test_views_are_saved_with_the_weights(tmp_path):
    world = make_world()
    world.save(tmp_path / "model")
    loaded = DiffusionWorldModel.load(tmp_path / "model")
    assert loaded.denoiser.layout == FrameLayout(LIFT.views, targets=LIFT.targets)
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 24, 24, 3), np.uint8)
    shown = []
    for each in (world, loaded):
        state, _ = each.start([StartState(frames[0], "")])
        shown.append(each.step_chunk(state, torch.full((1, 4, 4), 0.3), [0])[1].frames)
    assert np.array_equal(*shown)


def test_a_world_model_without_views_has_the_file_of_before(tmp_path):
    make_world(WHOLE_FRAME).save(tmp_path / "model")
    assert "layout" not in json.loads((tmp_path / "model" / SETTINGS_FILE).read_text())


@pytest.mark.parametrize(
    "layout",
    [
        {"views": [], "targets": []},
        {"views": [[0, 0, 12, 24]], "targets": [None, None]},
        {"views": [[0, 0, 0, 24]], "targets": [None]},
        {"views": [], "targets": [{"across": [1e999], "down": [0, 0]}]},
        {"views": [], "targets": [None], "more": 1},
    ],
)
def test_damaged_views_are_named(tmp_path, layout):
    make_world().save(tmp_path / "model")
    path = tmp_path / "model" / SETTINGS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
    with pytest.raises(UserError, match=SETTINGS_FILE):
        DiffusionWorldModel.load(tmp_path / "model")


def test_a_pretrained_model_of_other_views_is_refused(tmp_path, monkeypatch):
    make_world().save(tmp_path / "model")
    config = validate({"world_model": {"pretrained": str(tmp_path / "model")}})
    facts = EnvironmentFacts((24, 24, 3), 4, ("lift",), LIFT)
    monkeypatch.setattr(pretrained_world, "environment_facts", lambda _: facts)
    assert begin_world_model(config, str(tmp_path / "model"), 0).denoiser.layout.targets == LIFT.targets
    other = facts._replace(layout=LIFT._replace(targets=(SIDE, FRONT)))
    monkeypatch.setattr(pretrained_world, "environment_facts", lambda _: other)
    with pytest.raises(ConfigError, match=r"world_model\.pretrained = .* other views of where an action aims"):
        begin_world_model(config, str(tmp_path / "model"), 0)


def test_patches_that_do_not_fit_the_frames_are_named():
    config = validate({"world_model": {**SETTINGS, "network": {**SETTINGS["network"], "patch_size": [1, 6, 4]}}})
    with pytest.raises(ConfigError, match=r"world_model\.network\.patch_size = \[1, 6, 4\]: frames of 16 x 16"):
        begin_world_model(config, "", 0)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (LIFT._replace(views=LIFT.views[:1], targets=(FRONT,)), "the views end at 12 x 24"),
        (LIFT._replace(targets=(FRONT,)), "1 targets are named; the frame has 2 views"),
        (LIFT._replace(targets=(FRONT, Target((1, 0, 0), (0, 1, 0)))), "needs 5 numbers"),
    ],
)
def test_targets_that_do_not_fit_are_named(layout, message):
    with pytest.raises(ValueError, match=message):
        layout.check((24, 24, 3), 4)


# -- pixel weights ----------------------------------------------------------------------------------------------------


def test_an_orange_pixel_counts_as_the_environment_says():
    world = make_world()
    trainer_of(world, LIFT)
    last = torch.full((1, 3, 1, 24, 24), 0.0)
    future = last.repeat(1, 1, 2, 1, 1)
    orange = world.codec.encode(torch.tensor([250, 130, 20], dtype=torch.uint8).view(1, 1, 1, 1, 3)).flatten()
    future[0, :, 0, 3, 5] = orange  # it comes
    last[0, :, 0, 7, 7] = orange  # it goes
    future[0, :, :, 9, 9] = last[0, :, :, 9, 9] = orange[:, None]  # it stays
    weights = world.denoiser._weights(future, last)[0, 0]
    assert weights[0, 3, 5] == weights[0, 7, 7] == 6 + 4 + 20 and weights[0, 9, 9] == 1 + 4
    assert weights[1, 3, 5] == 1 and weights[0, 0, 0] == 1


def test_pixel_weights_change_the_loss_and_nothing_without_them():
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 3, 6, 24, 24, generator=generator)
    actions, noise = torch.rand(2, 4, 4, generator=generator), torch.randn(clip.shape, generator=generator)
    losses = []
    for layout in (WHOLE_FRAME, LIFT._replace(pixel_weights=()), LIFT):
        world = make_world()
        trainer_of(world, layout)
        losses.append(float(world.denoiser.loss(clip, 2, actions, torch.ones(2), noise).detach().sum()))
    assert losses[0] == losses[1] < losses[2]


def trainer_of(world: DiffusionWorldModel, layout: FrameLayout) -> WorldModelTrainer:
    return WorldModelTrainer(world, WorldModelTrainingConfig(steps=2, batch_size=2), 0, augmentation=layout)


def test_a_training_on_two_views_takes_its_steps():
    world = make_world()
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 24, 24, 3), np.uint8)
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 8, 4)).astype(np.float32)
    trainer = trainer_of(world, LIFT)
    trainer.use([WindowSampler(frames, actions, np.full(3, 8), 2, 4)], [1.0])
    assert all(np.isfinite(trainer.step()["loss"]) for _ in range(2))


def test_small_world_models_draw_as_before():
    assert small_world_model().denoiser.layout == WHOLE_FRAME
