"""The published VideoMAE classifier: its pixels, its windows, its files, its rule of decision."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.reward_models.preprocessing import PREPROCESSOR_FILE, FramePreprocessing, resize_like_pil
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel, decide_as_published

GOLDEN = Path(__file__).parents[1] / "golden" / "reward"
SIZE = json.loads((GOLDEN / "config.json").read_text())["image_size"]


def arrange(folder: Path, preprocessor: bool = True) -> Path:
    """The published weights as a transformers folder."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    if preprocessor:
        content = FramePreprocessing(resize=SIZE, crop=SIZE).to_file()
        (folder / PREPROCESSOR_FILE).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> PublishedRewardModel:
    return PublishedRewardModel.load(arrange(tmp_path_factory.mktemp("reward") / "model"))


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.load(GOLDEN / "videos.npz")["videos"]


def pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Along the width first: newer versions of PIL take the other order where that is less work."""
    for size in ((width, len(image)), (width, height)):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return image


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 4), st.integers(0, 2**31))
def test_resizing_gives_pils_bytes(sizes, seed):
    height, width, new_height, new_width = sizes
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    ours = resize_like_pil(torch.from_numpy(image), (new_height, new_width))
    assert np.array_equal(ours.numpy(), pil(image, new_height, new_width))


def test_full_size_frames_have_pils_bytes():
    image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    steps = FramePreprocessing()
    (pixels,) = steps(torch.from_numpy(image)[None])
    resized = pil(image, 224, 280)[:, 28:252]
    expected = (resized / 255 - np.array(steps.mean)) / np.array(steps.std)
    assert pixels.shape == (3, 224, 224)
    assert np.abs(pixels.numpy() - expected.transpose(2, 0, 1)).max() < 1e-6


def test_a_window_is_scored_by_its_own_frames_alone(model, videos):
    length, span = model.clip_length, 21
    logits = model.logits(videos[:, :span], batch_size=5)
    assert logits.shape == (len(videos), span + 1 - length, 2)
    for row, start in ((0, 0), (1, 7), (1, span - length)):
        alone = model.logits(videos[row : row + 1, start : start + length])
        assert torch.allclose(alone[0, 0], logits[row, start], atol=1e-5)
    assert model.probabilities(videos[:, : length - 1]).shape == (len(videos), 0)


def test_a_bare_file_of_torch_save_is_the_same_model(model, videos, tmp_path):
    """The reference's .pth tells no head count: it stands in a config.json beside it, or is that of VideoMAE-base."""
    weights = load_file(GOLDEN / "model.safetensors")
    torch.save(weights, tmp_path / "reward.pth")
    shutil.copy(GOLDEN / "config.json", tmp_path)
    loaded = PublishedRewardModel.load(tmp_path / "reward.pth")
    assert torch.equal(loaded.logits(videos[:, :12]), model.logits(videos[:, :12]))
    (tmp_path / "config.json").unlink()
    bare = PublishedRewardModel.load(tmp_path / "reward.pth")
    assert bare.network.config.image_size == 224 and bare.clip_length == 8


def test_save_and_load_keep_every_bit_and_the_published_names(model, videos, tmp_path):
    model.save(tmp_path / "out")
    published, written = load_file(GOLDEN / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == published.keys()
    assert all(torch.equal(written[name], published[name]) for name in published)
    again = PublishedRewardModel.load(tmp_path / "out")
    assert again.preprocessing == model.preprocessing
    assert torch.equal(again.logits(videos[:, :12]), model.logits(videos[:, :12]))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"hidden_size": 96}, "hidden_size"), ({"image_size": 2**15}, "too many"), ({"num_attention_heads": 5}, "heads")],
)
def test_sizes_that_are_not_those_of_the_weights_are_named(tmp_path, change, named):
    folder = arrange(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=named):
        PublishedRewardModel.load(folder)


@pytest.mark.parametrize("change", [{"resample": 3}, {"size": {"height": 224}}, {"image_std": [0, 1, 1]}])
def test_other_preprocessing_than_the_published_is_refused(tmp_path, change):
    folder = arrange(tmp_path / "model")
    content = json.loads((folder / PREPROCESSOR_FILE).read_text())
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=PREPROCESSOR_FILE):
        PublishedRewardModel.load(folder)


def test_frames_smaller_than_the_crop_are_refused():
    with pytest.raises(UserError, match="crop = 64"):
        FramePreprocessing(resize=32, crop=64)(torch.zeros(1, 40, 40, 3, dtype=torch.uint8))


# -- decisions ---------------------------------------------------------------------------------------------------


def test_the_last_window_never_succeeds_and_early_ones_are_not_judged():
    length, min_steps, frames = 8, 5, 20
    num_windows = frames + 1 - length
    for window in range(num_windows):
        probabilities = np.zeros((1, num_windows))
        probabilities[0, window] = 0.9
        scores = decide_as_published(probabilities, 0.9, length, min_steps, frames)
        judged = window + length >= min_steps + length and window < num_windows - 1
        assert bool(scores.success[0]) is judged
        assert scores.finish_step[0] == (window + length - 1 if judged else frames - 1)


def test_a_video_with_no_window_to_judge_fails():
    for num_windows in (0, 1):
        scores = decide_as_published(np.ones((3, num_windows)), 0.0, 8, 0, 7 + num_windows)
        assert not scores.success.any() and set(scores.finish_step) == {6 + num_windows}


def test_the_rule_is_ours_but_for_the_last_window_and_the_first_ones():
    probabilities = np.random.default_rng(0).random((50, 30))
    probabilities[:, -1] = 0
    ours = decide(probabilities, 0.97, 8, 7, 36)
    theirs = decide_as_published(probabilities, 0.97, 8, 0, 37)
    assert np.array_equal(ours.success, theirs.success) and np.array_equal(ours.finish_step, theirs.finish_step)
    assert 0 < ours.success.sum() < 50


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_size": [SIZE, SIZE + 8]}, "image_size"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "num_labels = 3, the weights are of 2"),
        ({"qkv_bias": False}, "qv_bias = false"),
        ({"patch_size": [8, 16]}, "patch_size"),
        ({"surprise": 1}, "surprise = 1 is not read here"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "the two must be the same"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(tmp_path, settings, named):
    folder = arrange(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UserError, match=named):
        PublishedRewardModel.load(folder)


def test_sizes_by_height_and_width_and_either_name_of_the_dtype_are_read(tmp_path, model, videos):
    for key in ("dtype", "torch_dtype"):
        folder = arrange(tmp_path / key)
        config = json.loads((folder / "config.json").read_text())
        sides = {"image_size": [SIZE, SIZE], "patch_size": [config["patch_size"]] * 2, key: "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config | sides))
        assert torch.equal(PublishedRewardModel.load(folder).logits(videos), model.logits(videos))


def test_what_transformers_writes_scores_the_same(tmp_path, model, videos):
    folder = arrange(tmp_path / "model")
    (folder / "config.json").unlink()
    model.network.config.save_pretrained(folder)
    model.network.save_pretrained(folder)
    assert torch.equal(PublishedRewardModel.load(folder).logits(videos), model.logits(videos))
