"""A mirrored or shifted sample is what the camera would see of the changed scene, with the action that aims at it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.supervised.changed_scenes import Augmentation, Moves
from learners.supervised.loop import WHOLE, WorkerShare
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.layout import FrameLayout, Mirror, Shift, View
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import FRAME_SIZE
from wmpo_ray.environments.pocket.pocket_kind import LAYOUT

HEIGHT, WIDTH = 6, 10  # of a view; two of them, one above the other
FRONT, SIDE = View(0, 0, HEIGHT, WIDTH), View(HEIGHT, 0, HEIGHT, WIDTH)
# Actions (x, y, z, grip): the front shows y to the right, the side x to the right, both z upwards.
TWO_VIEWS = FrameLayout(
    (FRONT, SIDE),
    Mirror(("columns", None), (1,)),
    (Shift(("columns", None), 2, 1, 2 / WIDTH), Shift((None, "columns"), 2, 0, 2 / WIDTH)),
)


def picture(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Frames [n, 3, 1, 2 HEIGHT, WIDTH] with a dot at columns [n, 2] of front and side, and actions [n, 1, 4] that aim there."""
    n = len(columns)
    frames, actions = torch.zeros(n, 3, 1, 2 * HEIGHT, WIDTH), torch.zeros(n, 1, 4)
    for view in range(2):
        frames[torch.arange(n), :, :, view * HEIGHT + 2, columns[:, view]] = 1.0
        actions[:, 0, 1 - view] = (columns[:, view] + 0.5) / WIDTH * 2 - 1
    actions[:, 0, 3] = 0.5
    return frames, actions


def test_frames_and_actions_of_two_views_change_together():
    columns = torch.randint(3, WIDTH - 3, (64, 2), generator=torch.Generator().manual_seed(0))
    frames, actions = picture(columns)
    augmentation = Augmentation(TWO_VIEWS)
    moves = augmentation.draw(64, WHOLE, torch.Generator().manual_seed(1))
    changed, aimed = augmentation.frames(frames, moves, rows=3), augmentation.actions(actions, moves)
    seen = torch.stack([changed[:, 0, 0, row].argmax(-1) for row in (2, HEIGHT + 2)], 1)
    expected, expected_actions = picture(seen)
    assert torch.equal(changed, expected)
    assert torch.allclose(aimed, expected_actions, atol=1e-6)
    assert 8 < (seen != columns).any(1).sum() < 64, "some change, some do not"
    assert torch.equal(frames, picture(columns)[0]), "what was given stays as it was"


def test_the_pixel_at_the_edge_is_repeated():
    frames = torch.arange(WIDTH).float().expand(1, 3, 1, HEIGHT, WIDTH)
    layout = FrameLayout(shifts=(Shift(("columns",), 2, 0, 0.0),))
    moved = Augmentation(layout).frames(frames, Moves(None, (torch.tensor([2]),)), rows=3)
    assert moved[0, 0, 0, 0].tolist() == [0, 0, *range(WIDTH - 2)]


def test_a_mirrored_episode_of_the_pocket_task_is_an_episode_of_it():
    env, mirrored = PocketEnvironment(24), PocketEnvironment(24)
    seeds = np.arange(6)
    frames, reflected = [env.reset(seeds)], []
    mirrored.reset(seeds, render=False)
    for part in (mirrored.gripper, mirrored.block):
        part[:, 1] = FRAME_SIZE - part[:, 1]
    mirrored.pocket_y = FRAME_SIZE - mirrored.pocket_y
    reflected.append(mirrored.render())
    augmentation, rng = Augmentation(LAYOUT), np.random.default_rng(0)
    all_mirrored = Moves(torch.ones(6, dtype=torch.bool), ())
    for _ in range(24):
        action = env.expert_action(rng)
        frames.append(env.step(action)[0])
        turned = augmentation.actions(torch.from_numpy(action)[:, None], all_mirrored)[:, 0]
        reflected.append(mirrored.step(turned.numpy())[0])
    assert env.success.all() and mirrored.success.all()
    turned = augmentation.frames(torch.from_numpy(np.stack(frames, 1)), all_mirrored, rows=2).numpy()
    assert np.abs(turned.astype(int) - np.stack(reflected, 1)).max() <= 1


def test_what_is_not_used_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    frames, actions = picture(torch.full((4, 2), 3))
    augmentation = Augmentation()
    moves = augmentation.draw(4, WHOLE, generator)
    assert torch.equal(generator.get_state(), before)
    assert augmentation.frames(frames, moves, rows=3) is frames and augmentation.actions(actions, moves) is actions


def test_ranks_share_the_draws_of_the_whole_batch():
    augmentation = Augmentation(TWO_VIEWS)
    whole, *parts = (
        augmentation.draw(7, share, torch.Generator().manual_seed(3))
        for share in (WHOLE, WorkerShare(0, 2), WorkerShare(1, 2))
    )
    assert torch.equal(torch.cat([part.mirrored for part in parts]), whole.mirrored)
    for i, pixels in enumerate(whole.pixels):
        assert torch.equal(torch.cat([part.pixels[i] for part in parts]), pixels)


def test_latents_of_several_pixels_are_mirrored_and_not_shifted():
    latents = Augmentation(TWO_VIEWS).for_latents(2)
    assert latents.layout.views == (View(0, 0, 3, 5), View(3, 0, 3, 5)) and not latents.layout.shifts
    assert latents.layout.mirror == TWO_VIEWS.mirror
    with pytest.raises(ConfigError, match=r"world_model\.codec"):
        Augmentation(TWO_VIEWS).for_latents(4)
