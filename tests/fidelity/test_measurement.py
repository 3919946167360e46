"""Replays measured whole: in a perfect world, in a still one, and a batch at a time."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.implementations import make_reward_model
from tests.support.recorded_pocket import recorded_episodes
from tests.support.small_world import small_world_model
from wmpo_ray.core.files import json_clean
from wmpo_ray.data import episodes as data_episodes
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import FAILURES, PocketEnvironment
from wmpo_ray.fidelity.fidelity_file import describe
from wmpo_ray.fidelity.measurement import Instruments, Measured, measure
from wmpo_ray.fidelity.metrics import CEILING, IMAGINED, SOURCES, STILL
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.world_models.diffusion import initialise

HORIZON = 16


@pytest.fixture(scope="module")
def episodes():
    found = recorded_episodes(12, HORIZON)
    assert 0 < found.success.mean() < 1 and len(set(found.lengths)) > 3
    return found


def instruments() -> Instruments:
    reward_model = make_reward_model()
    reward_model.threshold = 0.5
    return Instruments(PocketEnvironment(HORIZON), VideoJudge(reward_model, 4))


def perfect() -> EnvironmentWorld:
    return EnvironmentWorld(PocketEnvironment(HORIZON), chunk_length=4)


def described(measured: Measured, episodes) -> dict:
    return describe(measured, episodes, "pixels", FAILURES, 0.85, 0)


def test_a_perfect_world_reaches_the_ceiling_in_everything(episodes):
    found = measure(perfect(), episodes, 0, instruments())
    for name, values in found.values.items():
        assert np.array_equal(values[IMAGINED], values[CEILING], equal_nan=True), name
    assert np.nanmin(found.values["ssim"][IMAGINED]) == pytest.approx(1)
    assert np.array_equal(found.modes[IMAGINED], found.modes[CEILING]) and found.simulated.all()
    report = described(found, episodes)
    assert report["metrics"]["psnr_db"]["of"][IMAGINED]["value"] == pytest.approx(61.14, abs=0.01)
    for name in ("psnr_db", "ssim", "agent_error"):
        assert report["metrics"][name]["drift"]["passed"]["step"] is None, name


def test_a_world_in_which_nothing_moves_is_the_still_picture(episodes):
    world = small_world_model()
    initialise(world.denoiser.network)
    found = measure(world, episodes, 0, instruments())
    for name, values in found.values.items():
        assert np.array_equal(values[IMAGINED], values[STILL], equal_nan=True), name
    assert described(found, episodes)["metrics"]["psnr_db"]["drift"]["passed"]["step"] is not None


def test_a_batch_at_a_time_is_the_same_as_all_at_once(episodes, monkeypatch):
    backwards = replace(episodes, actions=-episodes.actions)  # a world that is wrong, and is stepped exactly
    done: list[int] = []
    whole = measure(perfect(), backwards, 0, instruments(), done.append)
    monkeypatch.setattr(data_episodes, "BATCH_BYTES", 5 * np.asarray(episodes.frames)[0].nbytes)
    parts = measure(perfect(), backwards, 0, instruments(), done.append)
    assert done == [12, 5, 10, 12]
    for name, values in whole.values.items():
        for source in SOURCES:
            assert np.allclose(values[source], parts.values[name][source], atol=1e-6, equal_nan=True), (name, source)
    assert json_clean(described(whole, backwards))["failures"] == json_clean(described(parts, backwards))["failures"]


def test_what_follows_the_end_of_an_episode_counts_for_labels_only(episodes):
    found = measure(perfect(), episodes, 0, instruments())
    after = np.arange(1, HORIZON + 1)[None] > episodes.lengths[:, None]
    for name in ("psnr_db", "ssim", "agent_error"):
        assert np.array_equal(np.isnan(found.values[name][IMAGINED]), after)
    assert not np.isnan(found.values["label_agreement"][IMAGINED]).any()
    numbers = described(found, episodes)["num_by_step"]
    assert numbers[0] == 12 and numbers == sorted(numbers, reverse=True)


def test_only_what_there_are_instruments_for_is_measured(episodes):
    found = measure(perfect(), episodes, 0, Instruments())
    assert set(found.values) == {"psnr_db", "ssim"} and not found.success and found.simulated is None
    report = described(found, episodes)
    assert not {"labels", "failures", "positions_from_simulator"} & report.keys()
    blind = instruments()
    blind.environment.abilities = frozenset({"render"})
    found = measure(perfect(), episodes, 0, blind)
    assert "agent_error" not in found.values and set(found.modes[IMAGINED]) <= {"success", "failure"}


def test_a_codec_that_loses_something_lowers_the_ceiling(episodes, monkeypatch):
    world = small_world_model()
    kept = world.codec.decode
    monkeypatch.setattr(world.codec, "decode", lambda latents: kept(latents * 0.9), raising=False)
    ceiling = described(measure(world, episodes, 0, Instruments()), episodes)["metrics"]["psnr_db"]["of"][CEILING]
    assert ceiling["high"] < 45


def test_a_seed_decides_the_noise_and_nothing_else_does(episodes):
    few = episodes.rows(slice(3))
    one, same, other = (measure(small_world_model(), few, seed, Instruments()) for seed in (1, 1, 2))
    assert np.array_equal(one.values["ssim"][IMAGINED], same.values["ssim"][IMAGINED], equal_nan=True)
    assert not np.array_equal(one.values["ssim"][IMAGINED], other.values["ssim"][IMAGINED], equal_nan=True)
    assert np.array_equal(one.values["ssim"][STILL], other.values["ssim"][STILL], equal_nan=True)
