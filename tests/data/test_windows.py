import numpy as np
import pytest
import torch

from wmpo_ray.data.windows import WindowSampler

K, C, T = 3, 2, 11
LENGTHS = np.array([T, 5, 3, 2])  # the last one is shorter than a chunk


def sampler(weights=None) -> WindowSampler:
    """Each frame and action says which episode and step it is: frame t shows (m, t), the action a_t leads to t+1."""
    m, t = np.meshgrid(np.arange(len(LENGTHS)), np.arange(T + 1), indexing="ij")
    frames = np.stack([m, t, t], -1).astype(np.uint8)[:, :, None, None, :]  # [M, T+1, 1, 1, 3]
    actions = np.stack([m, t], -1).astype(np.float32)[:, :T]  # [M, T, 2]
    return WindowSampler(frames, actions, LENGTHS, context_frames=C, chunk_length=K, weights=weights)


def drawn(weights=None, num: int = 2000):
    batch = sampler(weights).draw(num, torch.Generator().manual_seed(0))
    clip, previous = batch.clip[:, :, 0, 0].long(), batch.previous_clip[:, :, 0, 0].long()
    return batch, clip, previous


def test_actions_align_with_the_frames_they_lead_to():
    batch, clip, _ = drawn()
    assert torch.equal(batch.actions[..., 1].long() + 1, clip[:, C:, 1])
    assert torch.equal(batch.actions[..., 0].long(), clip[:, C:, 0])


def test_a_window_is_consecutive_frames_and_repeats_the_first_one_before_the_start():
    _, clip, _ = drawn()
    start = clip[:, C, 1] - 1
    expected = (start[:, None] + torch.arange(1 - C, K + 1)).clamp_min(0)
    assert torch.equal(clip[..., 1], expected)
    assert (clip[start == 0][:, :C, 1] == 0).all() and (start == 0).any()
    assert (clip[..., 0] == clip[:, :1, 0]).all()


def test_no_window_passes_the_end_of_an_episode_and_every_other_one_is_drawn():
    _, clip, _ = drawn()
    found = {(row, last) for row, last in clip[:, -1, :2].tolist()}
    assert found == {(row, last) for row, length in enumerate(LENGTHS) for last in range(K, length + 1)}


def test_windows_of_weight_zero_are_never_drawn_and_the_others_in_proportion():
    weights = np.zeros((len(LENGTHS), T))
    weights[0, 4], weights[1, 1] = 3.0, 1.0
    weights[3, 0] = 100.0  # its episode is too short for a window
    _, clip, _ = drawn(weights, num=4000)
    first = (clip[:, 0, 0] == 0).float().mean().item()
    assert {tuple(pair) for pair in clip[:, C, :2].tolist()} == {(0, 5), (1, 2)}
    assert first == pytest.approx(0.75, abs=0.03)


def test_the_previous_window_is_exactly_k_frames_earlier():
    batch, clip, previous = drawn()
    start, earlier = clip[:, C, 1] - 1, previous[:, C, 1] - 1
    has = batch.has_previous
    assert torch.equal(has, start >= K) and has.any() and not has.all()
    assert torch.equal(earlier[has], start[has] - K)
    assert torch.equal(previous[has][:, -1], clip[has][:, C - 1])  # it ends with the frame that the chunk starts from
    assert torch.equal(batch.previous_actions[has][..., 1], batch.actions[has][..., 1] - K)
    assert torch.equal(previous[..., 0], clip[..., 0])


def test_the_same_generator_state_draws_the_same_windows():
    first, second = (sampler().draw(16, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_episodes_shorter_than_a_chunk_are_refused():
    with pytest.raises(ValueError, match=f"chunk of {K} frames"):
        WindowSampler(np.zeros((1, 3, 1, 1, 3), np.uint8), np.zeros((1, 2, 1), np.float32), [2], C, K)
