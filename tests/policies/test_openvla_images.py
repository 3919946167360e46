"""Image steps: what must hold for any image; the numbers of the reference are in tests/parity."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wmpo_ray.policies.openvla.images import CROP_AREA, STEPS, ImageProcessor, centre_crop, lanczos_resize
from wmpo_ray.policies.openvla.jpeg import jpeg_round_trip


def smooth_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return torch.from_numpy(np.stack([np.array(Image.fromarray(image).resize((width, height))) for image in small]))


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 60), st.integers(5, 60), st.integers(0, 255), st.sampled_from([1, 50, 95, 100]))
def test_a_grey_image_survives_jpeg_within_a_quantum(height, width, level, quality):
    grey = torch.full((1, height, width, 3), level, dtype=torch.uint8)
    out = jpeg_round_trip(grey, quality)
    step = max(1, (16 * (5000 // quality if quality < 50 else 200 - 2 * quality) + 50) // 100)
    # A constant block has only its mean, in units of 1/8.
    assert (out.int() - level).abs().max() <= min(step, 255) / 16 + 1
    assert out.unique().numel() == 1


SIZES = [(64, 64), (17, 23), (40, 50), (97, 34), (5, 6)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_jpeg_stays_close_to_another_decoder(height, width):
    """Pillow decodes with the accurate DCT, so the two differ by roundings."""
    images = smooth_images(1, height, width)
    file = io.BytesIO()
    Image.fromarray(images[0].numpy()).save(file, "JPEG", quality=95, subsampling=2)
    theirs = torch.from_numpy(np.array(Image.open(file)))
    difference = (jpeg_round_trip(images)[0].int() - theirs.int()).abs()
    assert difference.max() <= 20 and difference.float().mean() < 4


@pytest.mark.parametrize("quality", [10, 50, 95, 100])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_jpeg_is_libjpeg_turbo_to_the_bit(height, width, quality):
    simplejpeg = pytest.importorskip("simplejpeg", reason="the only decoder here that offers the fast DCT")
    images = smooth_images(1, height, width, seed=quality)
    file = io.BytesIO()
    Image.fromarray(images[0].numpy()).save(file, "JPEG", quality=quality, subsampling=2)
    theirs = simplejpeg.decode_jpeg(file.getvalue(), fastdct=True, fastupsample=False)
    assert torch.equal(jpeg_round_trip(images, quality)[0], torch.from_numpy(theirs))


@pytest.mark.parametrize("steps", STEPS)
def test_an_image_is_prepared_the_same_in_any_batch(steps):
    images = smooth_images(3, 48, 64)
    processor = ImageProcessor((28, 42), steps=steps)
    together, alone = processor(images), processor(images[1:2])
    assert together.shape == (3, 6, 28, 42) and torch.equal(together[1], alone[0])


@pytest.mark.parametrize("value", [0, 7, 128, 255])
def test_constant_images_stay_constant(value):
    images = torch.full((1, 33, 50, 3), value, dtype=torch.uint8)
    for prepared in (lanczos_resize(images, (20, 70)), centre_crop(images, (20, 70))):
        assert prepared.shape == (1, 20, 70, 3) and bool((prepared == value).all())


def test_resizing_to_the_same_size_changes_nothing():
    images = smooth_images(1, 32, 48)
    assert torch.equal(lanczos_resize(images, (32, 48)), images)


def test_resizing_keeps_mirror_images():
    images = smooth_images(1, 40, 56)
    mirrored = lanczos_resize(images.flip(2), (28, 28)).flip(2)
    assert (mirrored.int() - lanczos_resize(images, (28, 28)).int()).abs().max() <= 1


def test_the_crop_samples_where_the_formula_says():
    images, size = smooth_images(1, 40, 60), 21
    cropped = centre_crop(images, (size, size))
    side = math.sqrt(CROP_AREA)
    start, end = (1 - side) / 2, (1 + side) / 2
    for i, j in ((0, 0), (3, 17), (20, 20)):
        y, x = (start * (n - 1) + k * (end - start) * (n - 1) / (size - 1) for k, n in ((i, 40), (j, 60)))
        top, left = int(y), int(x)
        square = images[0, top : top + 2, left : left + 2].double() / 255
        rows = square[:, 0] + (square[:, 1] - square[:, 0]) * (x - left)
        value = (rows[0] + (rows[1] - rows[0]) * (y - top)) * 255.5
        assert (cropped[0, i, j].double() - value.floor()).abs().max() <= 1


def test_the_steps_are_what_their_names_say():
    images = smooth_images(1, 64, 64)
    size = (28, 28)
    prepared = {steps: ImageProcessor(size, steps=steps).prepare(images) for steps in STEPS}
    assert torch.equal(prepared["resize"], lanczos_resize(images, size))
    assert torch.equal(prepared["simulator"], centre_crop(images, size))
    assert torch.equal(prepared["no_jpeg"], centre_crop(lanczos_resize(images, size), size))
    assert torch.equal(prepared["rollout"], centre_crop(lanczos_resize(jpeg_round_trip(images), size), size))


def test_every_tower_has_its_own_scale():
    processor = ImageProcessor((4, 4), ((0.0,) * 3, (1.0,) * 3), ((1.0,) * 3, (0.5,) * 3))
    pixels = processor.normalize(torch.full((1, 4, 4, 3), 255, dtype=torch.uint8))
    assert bool((pixels[:, :3] == 1).all()) and bool((pixels[:, 3:] == 0).all())


def test_images_and_qualities_that_jpeg_has_not_are_refused():
    with pytest.raises(ValueError, match="4x9 pixels"):
        jpeg_round_trip(torch.zeros(1, 4, 9, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="quality=0"):
        jpeg_round_trip(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 0)
