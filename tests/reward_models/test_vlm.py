"""A vision-language model as a judge: what it is shown and asked, its scale, and files that are not trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from learners.supervised.vlm_calibration import calibrate, fit_scale
from tests.reward_models.test_videomae import make_episodes
from tests.support.implementations import make_vlm, vlm_folder
from tests.support.small_vlm import WORDS
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.reward_models.vlm import VlmRewardModel
from wmpo_ray.reward_models.vlm_settings import VlmRewardConfig

VLM = ["reward.kind=vlm", "reward.pretrained=somewhere", "reward.steps=0"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(vlm_folder(), tmp_path / "vlm")


def load(folder: Path) -> VlmRewardModel:
    return VlmRewardModel.load(folder, VlmRewardConfig(pretrained=str(folder)))


def videos(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (2, 6, 16, 16, 3)).astype(np.uint8)


def test_it_is_shown_the_last_frame_of_a_window_and_earlier_ones_at_equal_distances():
    shown = {n: make_vlm(clip_length=8, num_frames=n).shown_frames().tolist() for n in (1, 2, 4, 8)}
    assert shown == {1: [7], 2: [3, 7], 4: [1, 3, 5, 7], 8: list(range(8))}


def test_the_probability_is_that_of_yes_against_no_after_the_prompt():
    """The same number from the network's own logits, worked out alone and without a batch."""
    model, seen = make_vlm(), videos()
    found = model.probabilities(seen, ["blue pocket", "pink pocket"])
    assert np.ptp(found) > 0.01, "the network looks at the frames"
    model.processor.chat_template = None
    text = "<image><image>\n" + model._config.prompt.replace("{instruction}", "pink pocket")
    inputs = model.processor(images=[list(seen[1, [3, 5]])], text=[text], return_tensors="pt")
    with torch.no_grad():
        chances = model.network(**inputs).logits[0, -1].softmax(0)
    yes, no = (chances[[WORDS.index(word) for word in words]].sum() for words in (("yes", "Yes"), ("no", "No")))
    assert found[1, 2] == pytest.approx(float(yes / (yes + no)), rel=1e-4)


def test_the_models_own_template_is_used_where_there_is_one():
    model = make_vlm()
    model.processor.chat_template = (
        "{% for message in messages %}{{ message.role }}:{% for part in message.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %} assistant:"
    )
    assert model.prompt("push").startswith("user:<image><image>The pictures show") and "push" in model.prompt("push")
    assert model.prompt("push").endswith(" assistant:")


def test_the_scale_is_the_likeliest_and_never_turns_the_answer_round():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 3, 4000)
    success = rng.random(4000) < 1 / (1 + np.exp(-(0.7 * odds - 1.2)))
    slope, offset = fit_scale(odds, success)
    assert slope == pytest.approx(0.7, abs=0.06) and offset == pytest.approx(-1.2, abs=0.12)
    assert fit_scale(odds, ~success)[0] == 0.0
    constant = fit_scale(np.zeros(10), np.arange(10) < 5)
    assert np.isfinite(constant).all()


def test_it_is_calibrated_on_clips_of_both_outcomes_and_keeps_its_scale(folder, tmp_path):
    config = VlmRewardConfig(pretrained=str(folder), calibration_clips=16)
    model, episodes = VlmRewardModel.load(folder, config), make_episodes(8)
    metrics = calibrate(model, config, episodes, seed=0)
    assert metrics["calibration_clips"] == 12, "four successes end once, of the failures there are eight clips or more"
    assert metrics["calibration_slope"] == model.slope >= 0
    model.slope, model.offset = 2.0, -0.5
    for place in (tmp_path / "saved", tmp_path / "saved"):  # the second time into its own folder
        model.save(place)
        model = VlmRewardModel.load(place, config)
        assert (model.slope, model.offset) == (2.0, -0.5)
    raw = make_vlm().probabilities(videos(), ["blue", "pink"])
    scaled = 1 / (1 + np.exp(-(2 * np.log(raw / (1 - raw)) - 0.5)))
    np.testing.assert_allclose(model.probabilities(videos(), ["blue", "pink"]), scaled, rtol=1e-4)


def spoil(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_files_that_ask_for_more_than_there_is_are_refused(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for change, message in (
        ({"text_config": text | {"num_hidden_layers": 10**9}}, "declares 1000000000 layers"),
        ({"text_config": text | {"vocab_size": 10**9}}, "config.json asks for .* parameters, the weights have"),
        ({"text_config": text | {"auto_map": {"AutoConfig": "x.py"}}}, "'auto_map' is not allowed"),
        ({"model_type": "bert"}, "no vision-language model can be made"),
        ({"model_type": None}, "names no model_type"),
    ):
        before = (folder / "config.json").read_text()
        spoil(folder / "config.json", **change)
        with pytest.raises(UserError, match=message):
            load(folder)
        (folder / "config.json").write_text(before)
    assert load(folder)


def test_other_files_than_weights_are_refused(folder):
    processor = folder / "processor_config.json"
    before = processor.read_text()
    images = json.loads(before)["image_processor"]
    spoil(processor, image_processor=images | {"size": {"shortest_edge": 10**6}})
    with pytest.raises(UserError, match="shortest_edge = 1000000 must lie between 1 and 16384"):
        load(folder)
    processor.write_text(before)
    for name in ("pytorch_model.bin", "modeling.py"):
        (folder / name).write_text("")
        with pytest.raises(UserError, match=f"{name}: only safetensors are loaded"):
            load(folder)
        (folder / name).unlink()
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] * float("nan")}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="values that are not finite"):
        load(folder)
    processor.unlink()
    with pytest.raises(UserError, match="cannot be loaded by transformers"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reward.kind=vlm"], 'reward.pretrained = ""'),
        ([*VLM, "reward.steps=10"], "reward.steps=10: .* asked, not trained"),
        ([*VLM, "reward.num_frames=5"], "num_frames=5 is more than the 4 frames"),
        ([*VLM, "reward.prompt=Done?"], r"has no \{instruction\}"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", settings)


def test_answers_that_begin_with_the_same_token_are_refused():
    with pytest.raises(UserError, match="does not tell 'finished' from 'finished'; set reward.yes and reward.no"):
        make_vlm(yes=("finished",), no=("finished",))
