"""Recorded episodes in place of the run's own: what fits is taken, what does not is named before any work is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.recipes.checks import check_sources, source_needs
from cluster.recipes.collect import check as check_collect
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.stage import SOURCES, made_from, settings_of
from tests.support.foreign_files import rollout, write_hdf5, write_tar
from tests.support.hostile_files import refusal
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance, about_of
from wmpo_ray.data.exchange.lerobot_export import export_lerobot
from wmpo_ray.data.exchange.recorded_source import take_source
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import load_episodes, save_episodes
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert

NUM = 6


def config(*settings: str) -> Config:
    return load_config("smoke", [f"demos.num_trajectories={NUM}", f"collect.num_trajectories={NUM}", *settings])


@pytest.fixture(scope="module")
def demonstrations() -> Episodes:
    episodes = rollout_expert(make_environment(config().environment), np.arange(NUM + 2), 0.5, (0, "test"))
    assert episodes.success.all() and not (episodes.lengths == episodes.lengths[0]).all()
    return episodes


@pytest.fixture
def recorded(demonstrations, tmp_path) -> Path:
    save_episodes(tmp_path / "own.parquet", demonstrations, Provenance(origin="real", made_by="a person"))
    return tmp_path / "own.parquet"


def taken(path: Path, section: str = "demos", *settings: str) -> Episodes:
    needs = source_needs(config(f"{section}.source={path}", *settings), section)
    take_source(needs, path.parent / "taken.parquet")
    return load_episodes(path.parent / "taken.parquet")


def same_content(a: Episodes, b: Episodes) -> bool:
    """Up to the end of each episode."""
    return a.instructions == b.instructions and all(
        np.array_equal(a.frames[i, : n + 1], b.frames[i, : n + 1])
        and np.array_equal(a.actions[i, :n], b.actions[i, :n])
        and (a.lengths[i], a.success[i], a.seeds[i]) == (n, b.success[i], b.seeds[i])
        for i, n in enumerate(b.lengths.tolist())
    )


def test_the_first_episodes_of_a_file_of_ours_or_of_another_format_are_taken(recorded, demonstrations):
    first = demonstrations.rows(slice(NUM))
    assert same_content(taken(recorded), first)
    origin = about_of(recorded.parent / "taken.parquet").provenance
    assert (origin.made_by, origin.notes) == ("a person", ("taken from own.parquet",))
    export_robomimic(recorded, recorded.parent / "a.hdf5")
    assert same_content(taken(recorded.parent / "a.hdf5"), first)
    export_lerobot(recorded, recorded.parent / "set")
    assert same_content(taken(recorded.parent / "set"), replace(first, seeds=np.full(NUM, -1)))


def test_shorter_files_get_the_horizon_of_the_run(recorded, demonstrations):
    longest = int(demonstrations.lengths.max())
    cut = replace(
        demonstrations, frames=demonstrations.frames[:, : longest + 1], actions=demonstrations.actions[:, :longest]
    )
    save_episodes(recorded, cut)
    episodes = taken(recorded)
    assert episodes.actions.shape[1] == config().environment.horizon > longest
    assert same_content(episodes, demonstrations.rows(slice(NUM)))


def test_the_camera_and_the_instruction_of_a_file_can_be_given(recorded, demonstrations):
    file, text = recorded.parent / "a.hdf5", demonstrations.instructions[0]
    save_episodes(recorded, replace(demonstrations, instructions=("do it",) * (NUM + 2)))
    export_robomimic(recorded, file, "front_image")
    given = (f"demos.source_instruction={text}", "demos.source_image_key=front_image")
    episodes = taken(file, "demos", *given)
    assert set(episodes.instructions) == {text} and np.array_equal(episodes.frames[0], demonstrations.frames[0])
    assert "there are front_image: choose one with demos.source_image_key" in refusal(lambda: taken(file))
    assert set(taken(recorded, "demos", given[0]).instructions) == {text}
    assert "remove it" in refusal(lambda: taken(recorded, "demos", *given))
    assert "there is no demos.source; set it" in refusal(lambda: check_sources(config(given[0]), "demos"))


def with_action(episodes: Episodes, value: float) -> Episodes:
    actions = episodes.actions.copy()
    actions[3, 1, 2] = value
    return replace(episodes, actions=actions)


TEXT = ("open the door",)
WRONG = {
    "frame size": (lambda e: replace(e, frames=e.frames[:, :, :12]), (), "row 0: frames of 12 x 16 pixels; the environment's have 16 x 16"),
    "action dimension": (lambda e: replace(e, actions=e.actions[:, :, :2].copy()), (), "actions of 2 dimensions; the environment's have 3"),
    "instruction": (lambda e: replace(e, instructions=e.instructions[:2] + TEXT * NUM), (), 'row 2: the instruction "open the door"'),
    "not a number": (lambda e: with_action(e, np.nan), (), "row 3: the action of step 1, dimension 2, is nan"),
    "out of range": (lambda e: with_action(e, -3), (), "row 3: the action of step 1, dimension 2, is -3"),
    "too few": (lambda e: e.rows(slice(4)), (), f"holds 4 episodes, demos.num_trajectories = {NUM} asks for more"),
    "too short": (lambda e: replace(e, lengths=np.minimum(e.lengths, 3)), (), "3 steps, fewer than rollout.chunk_length = 4"),
    "too long": (lambda e: replace(e, lengths=np.full(NUM + 2, 32)), ("environment.horizon=16",), "32 steps, more than environment.horizon = 16"),
    "held out": (lambda e: replace(e, seeds=e.seeds + 3 * 10**9), (), "begins at a held-out start state (3000000000)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_with_setting_file_and_row(demonstrations, tmp_path, name):
    edit, settings, match = WRONG[name]
    save_episodes(tmp_path / "a.parquet", edit(demonstrations))
    wanted = config(f"demos.source={tmp_path / 'a.parquet'}", *settings)
    message = refusal(lambda: check_sources(wanted, "demos"))
    assert message.startswith(f"demos.source = {tmp_path / 'a.parquet'}") and match in message, message


def test_files_of_other_formats_are_checked_too(tmp_path):
    for path in (write_hdf5(tmp_path / "a.hdf5"), write_tar(tmp_path / "a.tar", {"a": rollout()})):
        message = refusal(
            lambda path=path: check_sources(config(f"demos.source={path}", "demos.num_trajectories=1"), "demos")
        )
        assert "no instruction" in message or "8 x 6 pixels" in message
    message = refusal(lambda: check_sources(config(f"demos.source={tmp_path / 'none'}"), "demos"))
    assert "there is no such file; set demos.source" in message


def test_damaged_frames_are_found_before_the_run_begins(recorded):
    content = bytearray(recorded.read_bytes())
    content[300] ^= 8
    recorded.write_bytes(bytes(content))
    assert "damaged" in refusal(lambda: check_sources(config(f"demos.source={recorded}"), "demos"))


def test_held_out_episodes_come_from_elsewhere_and_the_budget_is_real(recorded, demonstrations):
    folder = recorded.parent
    few = f"gate.num_trajectories={NUM}"
    both = config(f"collect.source={recorded}", f"gate.source={recorded}", few)
    assert "is the same as collect.source" in refusal(lambda: check_collect(both, True))
    message = refusal(lambda: check_collect(config(f"gate.source={recorded}", few), True))
    assert "begins at a training start state (0)" in message
    unknown = replace(demonstrations, seeds=np.full(NUM + 2, -1))
    save_episodes(folder / "unknown.parquet", unknown)
    wanted = [f"gate.source={folder / 'unknown.parquet'}", few, "gate.num_counterfactuals=8"]
    assert "its start state is not known, and gate.num_counterfactuals = 8" in refusal(
        lambda: check_collect(config(*wanted), True)
    )
    check_collect(config(*wanted[:2], "gate.num_counterfactuals=0"), True)
    save_episodes(recorded, demonstrations, Provenance(origin="imagined"))
    assert "imagined" in refusal(lambda: check_collect(config(f"collect.source={recorded}"), True))
    twice = config(f"collect.source={recorded}", "recipe.rounds=2")
    assert "every round would take the same episodes" in refusal(lambda: check_collect(twice, True))


def results(config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    for step in steps_of(config):
        found[step.label] = made_from(step, config, found).result
    return found


def test_a_result_depends_on_the_content_of_the_file_and_not_on_its_name(recorded, demonstrations):
    plain, one = results(config()), results(config(f"demos.source={recorded}"))
    other = recorded.rename(recorded.parent / "other.parquet")
    assert results(config(f"demos.source={other}")) == one != plain
    save_episodes(other, demonstrations.rows(slice(1, None)))
    assert results(config(f"demos.source={other}"))["demos"] not in (one["demos"], plain["demos"])
    assert results(config(f"collect.source={other}"))["demos"] == plain["demos"]
    assert results(config(f"collect.source={other}"))["collect"] != plain["collect"]
    folder = recorded.parent / "set"
    export_lerobot(other, folder)
    before = results(config(f"demos.source={folder}"))
    (folder / "meta" / "info.json").write_text("{}")
    assert results(config(f"demos.source={folder}"))["demos"] != before["demos"]


def test_results_from_before_the_setting_hold():
    """What a result is made from has no word of a source where there is none."""
    wanted = load_config("demo")
    found = {key for step in steps_of(wanted) for key in settings_of(step.stage, wanted)}
    assert "collect.num_trajectories" in found and not found & set(SOURCES)


def test_a_run_takes_the_files_and_redoes_what_depends_on_a_changed_one(recorded, demonstrations, tmp_path):
    folder = tmp_path / "run"
    settings = [f"demos.source={recorded}", f"collect.source={recorded}", f"gate.num_trajectories={NUM}"]
    run_pipeline(config(*settings), folder, serial=True, until="collect")
    first = demonstrations.rows(slice(NUM))
    for name in ("demos", "collect"):
        assert same_content(load_episodes(folder / "trajectories" / f"{name}.parquet"), first)
    assert len(load_episodes(folder / "trajectories" / "held-out.parquet")) == NUM
    save_episodes(recorded, demonstrations.rows(slice(1, None)))
    message = refusal(lambda: run_pipeline(config(*settings), folder, serial=True, until="demos"))
    assert "demos (demos.source: " in message and "--resume" in message
    run_pipeline(config(*settings), folder, serial=True, until="demos", resume=True)
    again = load_episodes(folder / "trajectories" / "demos.parquet")
    assert same_content(again, demonstrations.rows(slice(1, NUM + 1)))
    receipt = json.loads((folder / "receipt.json").read_text())
    assert any(name.endswith("demos.source") for name in receipt["inputs"])
