"""The processor's settings of old and new transformers mean the same, and none is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wmpo_ray.core.errors import UserError
from wmpo_ray.reward_models.preprocessing import FramePreprocessing
from wmpo_ray.reward_models.preprocessor_files import find_preprocessing

EXPECTED = FramePreprocessing(resize=16, crop=16)
NEW = EXPECTED.to_file()


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in NEW.items() if key not in keys} | changes


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_any_says_nothing(tmp_path):
    assert find_preprocessing(tmp_path) is None
    assert find_preprocessing(write(tmp_path, processor_config={"processor_class": "X"})) is None


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config": NEW},
        {"preprocessor_config": without("image_processor_type", feature_extractor_type="VideoMAEFeatureExtractor")},
        {"preprocessor_config": without(size=16, crop_size=16)},
        {"preprocessor_config": without("crop_size", size=16)},
        {"preprocessor_config": without(crop_size=[16, 16], resample="bilinear")},
        {"preprocessor_config": without("do_resize", "do_rescale", "rescale_factor", "resample", "do_normalize")},
        {"preprocessor_config": without(_valid_processor_keys=["size"], do_pad=False, pad_size=None, device=None)},
        {"preprocessor_config": without(size={"shortest_edge": 16, "longest_edge": None})},
        {"processor_config": {"processor_class": "VideoMAEProcessor", "image_processor": NEW}},
        {"processor_config": {"video_processor": NEW}},
        {"video_preprocessor_config": NEW},
        {"processor_config": {"image_processor": NEW}, "preprocessor_config": NEW},
    ],
)
def test_what_any_version_wrote_is_read(tmp_path, files):
    assert find_preprocessing(write(tmp_path, **files)) == EXPECTED


def test_what_transformers_writes_is_read(tmp_path):
    from transformers import VideoMAEImageProcessor

    VideoMAEImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    expected = FramePreprocessing(resize=18, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert find_preprocessing(tmp_path) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": {"height": 16, "width": 16}}, "size"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "size"),
        ({"size": "16"}, "size"),
        ({"size": 0}, "size"),
        ({"crop_size": {"height": 16, "width": 8}}, "crop_size"),
        ({"crop_size": {"shortest_edge": 16}}, "crop_size"),
        ({"crop_size": True}, "crop_size"),
        ({"resample": 3}, "resample"),
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad = true|do_pad = True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"offset": True}, "offset"),
        ({"image_std": [0.2, 0.2, 0]}, "image_std"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_mean": None}, "image_mean"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_not_done_is_refused_by_name(tmp_path, changes, named, nested):
    content = without(**changes)
    write(
        tmp_path, **({"processor_config": {"image_processor": content}} if nested else {"preprocessor_config": content})
    )
    with pytest.raises(UserError, match=rf"processor_config.json.*({named})") as caught:
        find_preprocessing(tmp_path)
    assert "\n" not in str(caught.value)


def test_two_files_that_differ_are_both_named(tmp_path):
    write(tmp_path, processor_config={"image_processor": NEW}, preprocessor_config=without(size=18))
    with pytest.raises(UserError, match=r"processor_config.json, image_processor and preprocessor_config.json"):
        find_preprocessing(tmp_path)


@pytest.mark.parametrize("content", [[], 3, {"image_processor": 3}])
def test_a_file_that_holds_no_settings_is_damaged(tmp_path, content):
    with pytest.raises(UserError, match="damaged"):
        find_preprocessing(write(tmp_path, processor_config=content))
