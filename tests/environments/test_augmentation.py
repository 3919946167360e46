"""The environment decides which augmentation there is; settings change it as far as its frames allow."""

from __future__ import annotations

import json

import pytest

from cluster.recipes.align import WORLD_MODEL
from cluster.recipes.stage import MIRRORED, settings_of
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config, read_config_json, validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments import augmentation
from wmpo_ray.environments.augmentation import augmentation_of, is_mirrored
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.layout import FrameLayout, Mirror, PixelWeight, Shift, View

TWO_VIEWS = FrameLayout(
    (View(0, 0, 8, 16), View(8, 0, 8, 16)),
    Mirror(("columns", None), (1,)),
    (Shift(("columns", None), 3, 1, 2 / 16),),
    pixel_weights=(PixelWeight(((1.0, 0.0, -1.0, 40.0),), 4.0),),
)


@pytest.fixture
def two_views(monkeypatch):
    facts = EnvironmentFacts((16, 16, 3), 4, ("lift",), TWO_VIEWS)
    monkeypatch.setattr(augmentation, "environment_facts", lambda config: facts)


def config_of(**settings) -> Config:
    return validate({"augmentation": settings})


@pytest.mark.parametrize(("preset", "mirrored"), [("demo", True), ("smoke", True), ("pusht", True), ("coffee", False)])
def test_scenes_are_mirrored_where_the_environment_says_so(preset, mirrored):
    config = load_config(preset)
    assert is_mirrored(config) == mirrored
    assert bool(augmentation_of(config).mirror) == mirrored


def test_settings_turn_it_off_and_choose_another_axis():
    assert augmentation_of(config_of(mirror="none")).mirror is None
    chosen = config_of(mirror="columns", negated_actions=[0])
    assert augmentation_of(chosen).mirror == Mirror(("columns",), (0,))


def test_shifts_are_those_of_the_environment(two_views):
    assert augmentation_of(Config()) == TWO_VIEWS
    assert augmentation_of(config_of(shift=0)).shifts == ()
    assert augmentation_of(config_of(shift=1)).shifts[0].max_pixels == 1
    assert augmentation_of(config_of(pixel_weights="none")) == TWO_VIEWS._replace(pixel_weights=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 2}, r"augmentation\.shift = 2: environment\.kind = \"pocket\" does not say"),
        ({"mirror": "rows", "negated_actions": [3]}, r"augmentation\.negated_actions = \[3\].*0 to 2"),
        ({"negated_actions": [1]}, r"augmentation\.negated_actions = \[1\] belongs to augmentation\.mirror"),
        ({"mirror": "diagonal"}, r"augmentation\.mirror = \"diagonal\""),
        ({"shift": -1}, r"augmentation\.shift"),
    ],
)
def test_what_the_environment_contradicts_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        augmentation_of(config_of(**settings))


def test_no_single_axis_mirrors_several_views(two_views):
    with pytest.raises(ConfigError, match=r"augmentation\.mirror = \"rows\".*2 views"):
        augmentation_of(config_of(mirror="rows"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (FrameLayout((View(0, 0, 17, 16),)), "inside a frame of 16 x 16"),
        (TWO_VIEWS._replace(mirror=Mirror(("rows",))), "has 2 views"),
        (FrameLayout(mirror=Mirror(("rows",), (4,))), "dimensions 0 to 3"),
    ],
)
def test_a_layout_that_does_not_fit_the_frames_is_named(layout, message):
    with pytest.raises(ValueError, match=message):
        layout.check((16, 16, 3), 4)


# -- what was called world_model.alignment.vertical_flip ----------------------------------------------------------------


def test_the_former_setting_means_what_it_did():
    former = "world_model.alignment.vertical_flip"
    assert load_config("demo", [f"{former}=false"]) == load_config("demo", ['augmentation.mirror="none"'])
    assert load_config("demo", [f"{former}=true"]) == load_config("demo")
    both = load_config("demo", [f"{former}=false", 'augmentation.mirror="auto"'])
    assert both == load_config("demo", ['augmentation.mirror="auto"'])
    with pytest.raises(ConfigError, match=r"vertical_flip = 3: .* augmentation\.mirror"):
        load_config("demo", [f"{former}=3"])


def test_the_file_of_an_earlier_run_is_read(tmp_path):
    data = json.loads(config_to_json(Config()))
    data["world_model"]["alignment"]["vertical_flip"] = True
    del data["augmentation"]
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert read_config_json(tmp_path / "config.json") == Config()


def test_records_of_earlier_runs_hold():
    own = settings_of(WORLD_MODEL, Config())
    assert own[MIRRORED] is True and not any(key.startswith("augmentation") for key in own)
    assert settings_of(WORLD_MODEL, load_config("coffee"))[MIRRORED] is False
    assert settings_of(WORLD_MODEL, config_of(mirror="none"))["augmentation.mirror"] == "none"
    assert MIRRORED not in settings_of(WORLD_MODEL, load_config("perfect-world"))
