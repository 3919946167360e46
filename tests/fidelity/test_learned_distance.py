"""LPIPS with weights that stand for the published ones, compared with the package that published it."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.fidelity.learned_distance import LearnedDistance


def weights() -> dict[str, torch.Tensor]:
    """Waves of about the size of trained weights, under the names of the package."""
    found = {}
    for name, tensor in LearnedDistance().named_in_file().items():
        is_layer = name.startswith("net")
        fan_in = int(np.prod(tensor.shape[1:]))
        scale = 1.4 * (2 / fan_in) ** 0.5 if tensor.ndim > 1 else 0.14
        offset = len(name) if is_layer else 3
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 12.9898 + offset)
        wave = (wave * scale if is_layer else (wave * scale).abs() * 0.1).float()
        found[name] = wave.reshape(tensor.shape).clone()
    return found


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file({**weights(), "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, path)
    return path


@pytest.fixture(scope="module")
def distance(weight_file) -> LearnedDistance:
    return LearnedDistance.load(weight_file)


def test_it_is_that_of_the_package_lpips(distance):
    """lpips 0.1.4, LPIPS(net="alex"), with the same weights on the same pictures [72, 64, 3]."""
    y, x = np.mgrid[:72, :64]
    waves = [128 + 100 * np.sin(x / 3), 128 + 90 * np.cos(y / 4), (x * y) % 256]
    picture = np.stack(waves, -1).clip(0, 255).astype(np.uint8)
    others = np.stack([picture, np.roll(picture, 1, 1), (picture * 0.8 + 20).astype(np.uint8)])
    found = distance.between(np.stack([picture] * 3), others)
    assert found == pytest.approx([0, 0.014454745687544346, 0.0004244498268235475], rel=1e-3, abs=1e-9)


def test_small_frames_are_enlarged_and_more_noise_is_farther(distance):
    rng = np.random.default_rng(0)
    frames = rng.integers(60, 190, (3, 16, 16, 3)).astype(np.uint8)
    noise = rng.normal(0, 1, frames.shape)
    found = [distance.between(frames, (frames + scale * noise).clip(0, 255).astype(np.uint8)) for scale in (0, 3, 30)]
    assert not found[0].any() and (np.diff(found, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"net.slice3.6.bias": None}, "net.slice3.6.bias must be F32 .384. and is nothing"),
        ({"lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, "lin2.model.1.weight must be .* is F32 .1, 5, 1, 1."),
        ({"net.slice1.0.bias": torch.zeros(64, dtype=torch.float16)}, "net.slice1.0.bias .* is F16"),
        ({"net.slice1.0.bias": torch.full((64,), torch.nan)}, "net.slice1.0.bias holds values that are not finite"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, change, told):
    content = {name: tensor for name, tensor in {**weights(), **change}.items() if tensor is not None}
    save_file(content, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=f"--lpips .*other.safetensors: {told}"):
        LearnedDistance.load(tmp_path / "other.safetensors")


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "alex.safetensors").write_bytes(b"PK not these")
    for name in ("alex.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match=name):
            LearnedDistance.load(tmp_path / name)
