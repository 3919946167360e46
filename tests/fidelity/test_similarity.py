"""PSNR and SSIM: laws, and values of independent implementations."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from wmpo_ray.fidelity.similarity import psnr, ssim
from wmpo_ray.rollout.fidelity import psnr_per_frame


def pictures():
    """A picture [24, 20, 3] of waves, the same moved by a pixel, and with less contrast."""
    y, x = np.mgrid[:24, :20]
    waves = [128 + 100 * np.sin(x / 3), 128 + 90 * np.cos(y / 4), (x * y) % 256]
    picture = np.stack(waves, -1).clip(0, 255).astype(np.uint8)
    return picture, np.roll(picture, 1, 1), (picture * 0.8 + 20).astype(np.uint8)


def direct_ssim(x, y):
    """Eq. 13 of Wang et al. with scipy's Gaussian filter, cut to 11 pixels, on one colour [H, W]."""

    def mean(values):
        return gaussian_filter(values.astype(float), 1.5, truncate=3.5)[5:-5, 5:-5]

    x, y = x.astype(float), y.astype(float)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_equal_frames_are_as_alike_as_can_be():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    assert np.allclose(ssim(frames, frames), 1)
    highest = psnr(frames, frames)
    assert np.isfinite(highest).all() and np.allclose(highest, 61.14, atol=0.01)
    almost = frames.copy()
    almost[:, 0, 0, 0] ^= 1
    assert (psnr(frames, almost) <= highest).all()


def test_ssim_is_that_of_scikit_image():
    """structural_similarity of scikit-image 0.26 with gaussian_weights, sigma 1.5, use_sample_covariance False."""
    picture, moved, faint = pictures()
    found = ssim(np.stack([picture, picture]), np.stack([moved, faint]))
    assert found == pytest.approx([0.9289357066975651, 0.9697978017636751], abs=1e-9)


def test_ssim_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (2, 3, 19, 23, 3)).astype(np.uint8)
    expected = [np.mean([direct_ssim(x[i, ..., c], y[i, ..., c]) for c in range(3)]) for i in range(3)]
    assert ssim(x, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measured", [psnr, ssim])
def test_more_noise_is_less_alike(measured):
    rng = np.random.default_rng(2)
    frames = rng.integers(60, 190, (4, 16, 16, 3)).astype(np.uint8)
    noise = rng.normal(0, 1, frames.shape)
    found = [measured(frames, (frames + scale * noise).clip(0, 255).astype(np.uint8)) for scale in (2, 6, 15, 40)]
    assert (np.diff(found, axis=0) < 0).all()


def test_frames_smaller_than_the_window_have_a_smaller_one():
    frames = np.random.default_rng(3).integers(0, 256, (2, 8, 16, 3)).astype(np.uint8)
    found = ssim(frames, frames[::-1])
    assert np.allclose(ssim(frames, frames), 1) and (found < 0.9).all() and found[0] == pytest.approx(found[1])


def test_frames_are_measured_one_by_one(monkeypatch):
    frames = np.random.default_rng(4).integers(0, 256, (7, 16, 16, 3)).astype(np.uint8)
    whole = ssim(frames, frames[::-1])
    monkeypatch.setattr("wmpo_ray.fidelity.similarity.MAX_PIXELS", 600)
    assert np.allclose(ssim(frames, frames[::-1]), whole, atol=1e-12)
    assert ssim(frames[:0], frames[:0]).shape == (0,)


def test_psnr_is_that_of_the_stage_world_model():
    rng = np.random.default_rng(5)
    real, shown = rng.integers(0, 256, (2, 3, 6, 16, 16, 3)).astype(np.uint8)
    assert np.allclose(psnr(real, shown)[:, 1:].mean(0), psnr_per_frame(real, shown, np.full(3, 5)), atol=1e-4)
