"""Tables have the same bits on every processor: each is computed again with 60 digits and rounded where ours is."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from learners.supervised.cloning import _schedule
from wmpo_ray.algorithms.grpo import advantages
from wmpo_ray.core.rounding import cosine, sine
from wmpo_ray.policies.action_tokens import bin_centres
from wmpo_ray.policies.openvla.actions import ActionTokenizer
from wmpo_ray.policies.openvla.chunk_attention import RotaryPositions
from wmpo_ray.policies.openvla.images import CROP_AREA, ImageProcessor, centre_crop, lanczos_resize
from wmpo_ray.policies.openvla.jpeg import CHROMA_QUANTA, LUMA_QUANTA, _quanta
from wmpo_ray.policies.tiny import bump_basis
from wmpo_ray.reward_models.videomae import set_positions
from wmpo_ray.world_models.attention import RotaryEmbedding
from wmpo_ray.world_models.denoiser import TIME_SCALE, action_features
from wmpo_ray.world_models.diffusion_settings import SamplerConfig
from wmpo_ray.world_models.sampler import RectifiedFlowSampler, resolution_shift
from wmpo_ray.world_models.stdit_blocks import TimestepEmbedder, spatial_positions, timestep_frequencies

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def single(value) -> mpf:
    """The float32 nearest to a number of 60 digits, of two equally near ones that with an even last bit."""
    near = np.float32(float(value))
    around = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    best = min(around, key=lambda x: (abs(mpf(float(x)) - value), int(x.view(np.int32)) % 2))
    return mpf(float(best))


def same(ours: torch.Tensor | np.ndarray, expected: list) -> bool:
    """Whether float32 values are, in their order, the nearest to these numbers."""
    values = np.asarray(ours).ravel()
    assert values.dtype == np.float32
    return values.tolist() == [float(single(value)) for value in expected]


# -- images ------------------------------------------------------------------------------------------------------


def crop_places(num_in: int, num_out: int) -> list[mpf]:
    """Where in the input each output pixel lies; a reference in float32 rounds every step."""
    side = single(mpmath.sqrt(single(mpf(CROP_AREA))))
    start = single((1 - side) / 2)
    end = single(start + side)
    if num_out == 1:
        return [single(single(start + end) / 2 * (num_in - 1))]
    step = single(single(single(end - start) * (num_in - 1)) / (num_out - 1))
    first = single(start * (num_in - 1))
    return [single(first + single(i * step)) for i in range(num_out)]


def between(first: mpf, second: mpf, share: mpf) -> mpf:
    return single(first + single(single(second - first) * share))


@pytest.mark.parametrize(("num_in", "num_out"), [(224, 224), (256, 224), (16, 7), (33, 1), (224, 384)])
def test_the_pixels_of_a_crop_are_cut_off_at_the_same_grey_level(num_in, num_out):
    """A row of pixels, whose column of 2 decides nothing."""
    row = torch.from_numpy(np.random.default_rng(0).integers(0, 256, num_in, dtype=np.uint8))
    image = row[None, None, :, None].expand(1, 2, num_in, 1)
    scaled = [single(int(value) * single(mpf(1) / 255)) for value in row]
    expected = []
    for place in crop_places(num_in, num_out):
        left, right = int(mpmath.floor(place)), min(int(mpmath.ceil(place)), num_in - 1)
        value = between(scaled[left], scaled[right], single(place - left))
        expected.append(int(mpmath.floor(single(value * mpf("255.5")))))
    assert centre_crop(image, (1, num_out))[0, 0, :, 0].tolist() == expected


def lanczos_row(num_in: int, num_out: int, i: int) -> list[int]:
    """Weights of one output pixel in units of 2^-26."""
    ratio = mpf(num_in) / num_out
    width = max(ratio, mpf(1))
    distances = [(j + mpf("0.5") - (i + mpf("0.5")) * ratio) / width for j in range(num_in)]
    values = [mpmath.sincpi(x) * mpmath.sincpi(x / 3) if abs(x) < 3 else mpf(0) for x in distances]
    return [int(mpmath.nint(value / sum(values) * 2**26)) for value in values]


@pytest.mark.parametrize(("height", "width", "size"), [(20, 16, (14, 12)), (9, 7, (13, 16))])
def test_resized_images_are_those_of_integer_arithmetic(height, width, size):
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, height, width, 1), dtype=np.uint8))
    rows = [lanczos_row(height, size[0], y) for y in range(size[0])]
    columns = [lanczos_row(width, size[1], x) for x in range(size[1])]
    pixels = image[0, :, :, 0].tolist()
    between_passes = [
        [
            int(mpmath.nint(mpf(sum(w * line[x] for w, line in zip(row, pixels, strict=True))) / 2**10))
            for x in range(width)
        ]
        for row in rows
    ]
    expected = [
        [
            min(max(int(mpmath.nint(mpf(sum(w * v for w, v in zip(column, line, strict=True))) / 2**42)), 0), 255)
            for column in columns
        ]
        for line in between_passes
    ]
    assert lanczos_resize(image, size)[0, :, :, 0].tolist() == expected


def test_normalised_pixels():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    processor = ImageProcessor((16, 16))
    ours = processor.normalize(levels)[0].flatten(1)
    for channel, (mean, std) in enumerate(zip(processor.means.ravel(), processor.stds.ravel(), strict=True)):
        shifted = [single(single(mpf(level) / 255) - mpf(float(mean))) for level in range(256)]
        assert same(ours[channel], [value / mpf(float(std)) for value in shifted])


def test_jpeg_quanta():
    scale = [mpf(1)] + [mpmath.cos(k * mpmath.pi / 16) * mpmath.sqrt(2) for k in range(1, 8)]
    for base, (steps, factors) in zip((LUMA_QUANTA, CHROMA_QUANTA), _quanta(95, CPU), strict=True):
        for (y, a), (x, b) in itertools.product(enumerate(scale), repeat=2):
            step = min(max((base[y][x] * 10 + 50) // 100, 1), 255)
            assert steps[y, x] == step
            assert factors[y, x] == (step * int(mpmath.nint(2**14 * a * b)) + 2**11) >> 12


# -- positions and times -----------------------------------------------------------------------------------------


def frequencies_of_time() -> list[mpf]:
    log = single(mpf(float(-np.log(10000.0))))
    values = [single(mpmath.exp(single(single(log * i) / 128))) for i in range(128)]
    values[12] = mpf(float(np.nextafter(np.float32(float(values[12])), np.float32(1))))  # as published
    return values


def test_sinusoids_of_the_diffusion_time():
    freqs = frequencies_of_time()
    assert same(timestep_frequencies(128), freqs)
    times = [1000.0, 999.0, 15.0, 333.33334, 0.5]
    embedder, seen = TimestepEmbedder(4), []
    embedder.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    embedder(torch.tensor(times))
    angles = [[single(mpf(float(np.float32(time))) * freq) for freq in freqs] for time in times]
    expected = [f(angle) for row in angles for f in (mpmath.cos, mpmath.sin) for angle in row]
    assert same(seen[0], expected)


@pytest.mark.parametrize(
    ("width", "rows", "columns", "scale"), [(64, 2, 2, 16 / 512), (1152, 16, 16, 0.5), (32, 3, 5, 0.7)]
)
def test_spatial_positions(width, rows, columns, scale):
    base, quarter = round((rows * columns) ** 0.5), width // 4
    freqs = [single(mpf(10000) ** single(mpf(-2 * i) / (width // 2))) for i in range(quarter)]

    def axis(place: int, count: int) -> list[mpf]:
        grid = single(single(place / single(mpf(scale))) * single(mpf(base / count)))
        angles = [single(grid * freq) for freq in freqs]
        return [mpmath.sin(x) for x in angles] + [mpmath.cos(x) for x in angles]

    ours = spatial_positions(width, rows, columns, scale, base, CPU)
    for row, column in {(0, 0), (rows - 1, 0), (rows // 2, columns - 1), (1, 1)}:
        assert same(ours[row * columns + column], axis(column, columns) + axis(row, rows))


@pytest.mark.parametrize("width", [8, 16, 72])
def test_rotary_positions_of_the_world_model(width):
    rope = RotaryEmbedding(width)
    freqs = [single(mpf(10000) ** single(mpf(-2 * i) / width)) for i in range(width // 2)]
    assert same(rope.freqs.detach(), freqs)
    cos, sin = rope.angles(0, 64)
    angles = [single(position * freq) for position in range(64) for freq in freqs]
    assert same(cos, [mpmath.cos(angle) for angle in angles])
    assert same(sin, [mpmath.sin(angle) for angle in angles])


def test_rotary_positions_of_the_policy():
    settings = SimpleNamespace(hidden_size=4096, num_attention_heads=32, rope_parameters={"rope_theta": 10000.0})
    rotary = RotaryPositions(settings)
    freqs = [single(1 / single(mpf(10000) ** single(mpf(2 * i) / 128))) for i in range(64)]
    positions = torch.arange(0, 400, 23)
    cos, sin = rotary(torch.zeros(1), positions[None])
    angles = [[single(position * freq) for freq in freqs] for position in positions.tolist()]
    assert same(cos, [mpmath.cos(angle) for row in angles for angle in row + row])
    assert same(sin, [mpmath.sin(angle) for row in angles for angle in row + row])


def test_positions_of_the_reward_model():
    config = VideoMAEConfig(
        image_size=32, patch_size=2, num_frames=4, hidden_size=96, num_hidden_layers=1, num_attention_heads=2
    )
    network = VideoMAEForVideoClassification(config)
    set_positions(network)
    table = network.videomae.embeddings.position_embeddings
    assert table.shape == (1, 512, 96)
    for place in range(0, 512, 73):
        angles = [place / mpf(10000) ** (mpf(2 * (j // 2)) / 96) for j in range(96)]
        assert same(table[0, place], [(mpmath.cos if j % 2 else mpmath.sin)(x) for j, x in enumerate(angles)])


def test_sines_and_cosines_of_data():
    angles = torch.cat([torch.linspace(-4, 4, 500), torch.linspace(0, 1000, 500)])
    exact = [mpf(value) for value in angles.tolist()]
    assert same(sine(angles), [mpmath.sin(x) for x in exact])
    assert same(cosine(angles), [mpmath.cos(x) for x in exact])


def test_frequencies_of_action_features():
    action = torch.tensor([[[0.3]]])
    angles = [single(mpf(float(action)) * single(mpf(float(np.pi)) * 2**band)) for band in range(6)]
    expected = [mpf(float(action)), *map(mpmath.sin, angles), *map(mpmath.cos, angles)]
    assert same(action_features(action, 6), expected)


@pytest.mark.parametrize(("num_steps", "size"), [(30, 256), (30, 512), (7, 384)])
def test_times_of_eulers_steps(num_steps, size):
    shift = resolution_shift(size, size)
    assert shift == size / 256
    sampler = RectifiedFlowSampler(SamplerConfig(num_steps=num_steps, shift=shift))
    times = sampler._begin()
    sigmas = [single(1 - mpf(i) / num_steps) for i in range(num_steps)]
    if shift != 1:
        less = single(mpf(shift) - 1)
        sigmas = [single(single(mpf(shift) * s) / single(1 + single(less * s))) for s in sigmas]
    assert same(sampler.scheduler.sigmas, [*sigmas, mpf(0)])
    assert same(times, [single(s * 1000) / mpf(TIME_SCALE) for s in sigmas])


@pytest.mark.parametrize("shift", [1.0, 1.5])
def test_coefficients_of_unipc(shift):
    """The predictor's weights of the sample and of the predicted clean sample, of first order."""
    sampler = RectifiedFlowSampler(SamplerConfig(solver="unipc", num_steps=6, shift=shift))
    times = sampler._begin()
    scheduler, sigmas = sampler.scheduler, sampler.scheduler.sigmas.tolist()
    exact = [min(shift * s / (1 + (shift - 1) * s), 1 - mpf("1e-6")) for s in (1 - mpf(i) / 6 for i in range(6))]
    assert same(times, exact)
    for step, (now, then) in enumerate(itertools.pairwise(map(mpf, sigmas[:-1]))):
        scheduler._step_index = step
        scheduler.model_outputs = [None, torch.tensor([[0.0, 1.0]])]
        ours = scheduler.multistep_uni_p_bh_update(None, sample=torch.tensor([[1.0, 0.0]]), order=1)
        growth = (1 - now) / now * then / (1 - then)  # e^-h of h, by which log((1 - t) / t) grows
        assert same(ours, [then / now, -(1 - then) * (growth - 1)])


# -- actions and groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_bins", "num_bases"), [(64, 16), (256, 24), (33, 5)])
def test_bumps_of_the_action_bins(num_bins, num_bases):
    ours = bump_basis(num_bins, num_bases)
    width = mpf(num_bins) / num_bases * mpf("0.8")
    for base in range(num_bases):
        centre = (base + mpf("0.5")) / num_bases * num_bins - mpf("0.5")
        bumps = [single(mpmath.exp(-(((i - centre) / width) ** 2) / 2)) for i in range(num_bins)]
        assert same(ours[base], [2 * bump for bump in bumps])


@pytest.mark.parametrize("num_bins", [64, 100, 256])
def test_centres_of_the_action_bins(num_bins):
    expected = [single(2 * single((i + mpf("0.5")) / num_bins)) - 1 for i in range(num_bins)]
    assert same(bin_centres(num_bins), expected)


def test_edges_of_the_published_action_bins():
    """In float64: an edge is a rounded step, times its number, less one."""
    step = 2 / 255
    tokenizer = ActionTokenizer(32000, 256)
    expected = [float(mpf(float(mpf(step) * i)) - 1) for i in range(255)] + [1.0]
    assert tokenizer._edges.tolist() == expected


@pytest.mark.parametrize("size", [5, 8])
def test_advantages_of_every_number_of_successes(size):
    for successes in range(1, size):
        rewards = torch.tensor([[1.0] * successes + [0.0] * (size - successes)])
        mean = mpf(successes) / size
        deviation = mpmath.sqrt(mean * (1 - mean))
        assert same(advantages(rewards), [(mpf(float(reward)) - mean) / deviation for reward in rewards[0]])


def test_learning_rates():
    steps = range(0, 500, 17)
    exact = [min(1, mpf(i + 1) / 50) * (mpf("0.475") * (1 + mpmath.cospi(mpf(i) / 500)) + mpf("0.05")) for i in steps]
    assert same(np.array([_schedule(i, 500) for i in steps], np.float32), exact)
