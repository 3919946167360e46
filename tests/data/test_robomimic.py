"""HDF5 of robomimic and MimicGen: what comes in, what comes back, and what is refused by name."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.foreign_files import write_hdf5
from tests.support.hostile_files import refusal
from tests.support.stored_episodes import assert_same, make, sound
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.data.about import Provenance, about_of
from wmpo_ray.data.exchange import hdf5_files
from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes
from wmpo_ray.data.exchange.robomimic import ASSUMED, CUT, NO_LAST_FRAME
from wmpo_ray.data.exchange.robomimic_export import export_robomimic
from wmpo_ray.data.store import load_episodes, save_episodes

TEXT = ImportOptions(instruction="insert the nut")


def imported(path: Path, options: ImportOptions = TEXT):
    done = import_episodes(path, path.with_suffix(".parquet"), options)
    return done, load_episodes(path.with_suffix(".parquet"))


def refused(path: Path, match: str, options: ImportOptions = TEXT) -> None:
    """One line that names the file; nothing is written."""
    message = refusal(lambda: import_episodes(path, path.with_suffix(".parquet"), options))
    assert str(path) in message and match in message, message
    assert [each.name for each in path.parent.iterdir() if each != path] == []


def without_the_rest(episodes):
    """Zeros for the actions after each end, which the layout has no place for."""
    actions = episodes.actions.copy()
    actions[np.arange(actions.shape[1]) >= episodes.lengths[:, None]] = 0
    return replace(episodes, actions=actions)


@settings(max_examples=15, deadline=None)
@given(num=st.integers(1, 4), seed=st.integers(0, 99), jam=st.booleans())
def test_a_round_trip_loses_nothing_but_the_actions_after_the_end(tmp_path_factory, num, seed, jam):
    folder = tmp_path_factory.mktemp("trip")
    episodes = sound(num, seed)
    episodes = episodes if jam else replace(episodes, failures={})
    if jam:
        marks = np.arange(episodes.actions.shape[1]) < episodes.lengths[:, None]
        episodes = replace(episodes, corrections=marks & (episodes.actions[:, :, 0] > 0))
    origin = Provenance(origin="real", made_by="expert", environment={"kind": "pocket", "horizon": 4})
    save_episodes(folder / "a.parquet", episodes, origin)
    assert export_robomimic(folder / "a.parquet", folder / "a.hdf5") == num
    import_episodes(folder / "a.hdf5", folder / "b.parquet")
    assert_same(load_episodes(folder / "b.parquet"), without_the_rest(episodes))
    assert about_of(folder / "b.parquet").provenance == origin


def test_the_exported_layout_is_that_of_robomimic(tmp_path):
    episodes = sound()
    save_episodes(tmp_path / "a.parquet", episodes)
    export_robomimic(tmp_path / "a.parquet", tmp_path / "a.hdf5", "frontview_image")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data"].attrs["total"] == episodes.lengths.sum()
        assert {"env_name", "env_kwargs"} <= json.loads(file["data"].attrs["env_args"]).keys()
        for i, length in enumerate(episodes.lengths):
            demo = file[f"data/demo_{i}"]
            assert demo.attrs["num_samples"] == length == len(demo["actions"]) == len(demo["dones"])
            assert np.array_equal(demo["obs/frontview_image"], episodes.frames[i, :length])
            assert np.array_equal(demo["next_obs/frontview_image"], episodes.frames[i, 1 : length + 1])
            assert demo["rewards"][-1] == episodes.success[i] and demo["dones"][-1] == 1


def test_a_demonstration_without_the_frame_after_its_last_action_loses_that_action(tmp_path):
    done, episodes = imported(write_hdf5(tmp_path / "a.hdf5"))
    with h5py.File(tmp_path / "a.hdf5") as file:
        demo = file["data/demo_1"]
        assert np.array_equal(episodes.frames[1], demo["obs/agentview_image"])
        assert np.array_equal(episodes.actions[1], demo["actions"][:4].astype(np.float32))
    assert episodes.lengths.tolist() == [4, 4, 4] and episodes.success.all() and done.num_successes == 3
    assert episodes.instructions == ("insert the nut",) * 3 and (episodes.seeds < 0).all()
    assert f"{NO_LAST_FRAME} (all)" in done.notes and "states is left out (all)" in done.notes
    assert {"obs/robot0_eef_pos is left out (all)", "model_file is left out (all)"} <= set(done.notes)
    provenance = about_of(tmp_path / "a.parquet").provenance
    assert provenance.notes == done.notes and provenance.environment["env_name"] == "Square_D0"


@pytest.mark.parametrize(
    ("changes", "success", "length"),
    [
        ({"rewards": np.array([0, 0, 1.0, 1, 0])}, True, 3),
        ({"rewards": np.zeros(5)}, False, 4),
        ({"rewards": None}, True, 4),
        ({"rewards": None, "dones": np.zeros(5)}, False, 4),
        ({"rewards": None, "dones": np.array([0, 1, 0, 0, 0])}, True, 2),
        ({"rewards": None, "dones": None}, True, 4),
    ],
)
def test_success_is_the_first_reward_else_done_else_assumed(tmp_path, changes, success, length):
    done, episodes = imported(write_hdf5(tmp_path / "a.hdf5", **changes))
    assert (episodes.success == success).all() and (episodes.lengths == length).all()
    assert any(ASSUMED in note for note in done.notes) == ("dones" in changes and changes["dones"] is None)
    assert any(CUT in note for note in done.notes) == (length < 4)


def test_shaped_rewards_say_nothing_of_success(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", rewards=np.full(5, 0.3), dones=np.zeros(5))
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"reward_shaping": True}})
    assert not imported(path)[1].success.any()


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", num=12)
    _, episodes = imported(path)
    with h5py.File(path) as file:
        assert np.array_equal(episodes.frames[10], file["data/demo_10/obs/agentview_image"])


def edited(tmp_path: Path, edit) -> Path:
    path = write_hdf5(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replaced(name: str, value):
    def edit(file):
        del file[f"data/demo_1/{name}"]
        if value is not None:
            file[f"data/demo_1/{name}"] = value

    return edit


def action(value: float) -> np.ndarray:
    actions = np.zeros((5, 7))
    actions[3, 2] = value
    return actions


IMAGES = "obs/agentview_image"
WRONG = {
    "no actions": (replaced("actions", None), "demo_1 has no actions"),
    "fewer actions": (replaced("actions", np.zeros((4, 7))), "4 actions, 5 frames"),
    "another dimension": (replaced("actions", np.zeros((5, 6))), "data/demo_1: actions of 6 dimensions, those of data/demo_0"),
    "not a number": (replaced("actions", action(np.nan)), "data/demo_1: the action of step 3, dimension 2, is nan"),
    "out of range": (replaced("actions", action(1.5)), "data/demo_1: the action of step 3, dimension 2, is 1.5"),
    "whole numbers": (replaced("actions", np.zeros((5, 7), int)), "demo_1/actions is int64"),
    "another size": (replaced(IMAGES, np.zeros((5, 9, 6, 3), np.uint8)), "data/demo_1: frames of 9 x 6 pixels"),
    "grey": (replaced(IMAGES, np.zeros((5, 8, 6, 1), np.uint8)), "(8, 6, 1)"),
    "floats": (replaced(IMAGES, np.zeros((5, 8, 6, 3), np.float32)), "agentview_image is float32"),
    "no images": (replaced(IMAGES, None), "there are no images"),
    "too short": (replaced("rewards", np.zeros(3)), "rewards has 3 values for 5 actions"),
    "objects": (replaced("actions", [["a"] * 7] * 5), "actions is"),
    "a group": (lambda file: file["data/demo_1"].move("actions", "x") or file.create_group("data/demo_1/actions"), "is no dataset"),
    "no data": (lambda file: file.move("data", "other"), "no group data"),
    "no demos": (lambda file: [file["data"].pop(name) for name in list(file["data"])], "holds no episodes"),
    "count": (lambda file: file["data/demo_1"].attrs.modify("num_samples", 9), "num_samples=9"),
    "settings": (lambda file: file["data"].attrs.modify("env_args", "{"), "env_args"),
    "one frame": (lambda file: [replaced(name, value)(file) for name, value in (("actions", np.zeros((1, 7))),
        (IMAGES, np.zeros((1, 8, 6, 3), np.uint8)))] and file["data/demo_1"].attrs.modify("num_samples", 1), "0 steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_with_file_and_episode(tmp_path, name):
    edit, match = WRONG[name]
    refused(edited(tmp_path, edit), match)


def test_an_episode_without_language_asks_for_it(tmp_path):
    refused(write_hdf5(tmp_path / "a.hdf5"), "data/demo_0: no instruction; give it with --instruction", ImportOptions())


def test_another_camera_is_offered_by_name(tmp_path):
    path = edited(
        tmp_path, lambda file: [file[f"data/demo_{i}/obs"].move("agentview_image", "front_image") for i in range(3)]
    )
    refused(path, "there are front_image: choose one with --image-key")
    assert imported(path, replace(TEXT, image_key="front_image"))[0].num_episodes == 3


# -- hostile -----------------------------------------------------------------------------------------------------------


def linked(link):
    def edit(file):
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = link

    return edit


def external_storage(file) -> None:
    del file["data/demo_1/actions"]
    file["data/demo_1"].create_dataset("actions", (5, 7), "f8", external=[("/etc/passwd", 0, 280)])


def virtual(file) -> None:
    del file["data/demo_1/actions"]
    layout = h5py.VirtualLayout((5, 7), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.hdf5", "actions", (5, 7))
    file["data/demo_1"].create_virtual_dataset("actions", layout)


def huge(name: str, shape: tuple[int, ...], dtype: str):
    def edit(file):
        del file[f"data/demo_1/{name}"]
        file["data/demo_1"].create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip")

    return edit


HOSTILE = {
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "/x")), "ExternalLink"),
    "soft link": (linked(h5py.SoftLink("/data/demo_0/actions")), "SoftLink"),
    "external storage": (external_storage, "stand in another file"),
    "virtual": (virtual, "stand in another file"),
    "huge actions": (huge("actions", (10**12, 7), "f8"), "of which 0 are stored"),
    "huge images": (huge(IMAGES, (10**9, 8, 6, 3), "u1"), "of which 0 are stored"),
    "huge chunks": (huge(IMAGES, (5, 20000, 20000, 3), "u1"), "chunks of"),
    "long instruction": (lambda file: file["data/demo_1"].attrs.create("wmpo_ray", "a" * 300_000), "bytes"),
    "wide attribute": (lambda file: file["data/demo_1"].attrs.create("num_samples", np.zeros(1000)), "(1000,)"),
    "nested": (lambda file: file["data"].attrs.modify("env_args", '{"a":' * 900 + "1" + "}" * 900), "nested"),
    "no Unicode": (lambda file: file["data"].attrs.modify("env_args", '{"a": "\\ud800"}'), "Unicode"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_links_out_of_the_file_and_absurd_sizes_are_refused(tmp_path, name):
    edit, match = HOSTILE[name]
    refused(edited(tmp_path, edit), match)


def test_a_truncated_file_and_a_foreign_one_are_named(tmp_path):
    content = write_hdf5(tmp_path / "a.hdf5").read_bytes()
    for stop in range(8, len(content), len(content) // 23):
        (tmp_path / "a.hdf5").write_bytes(content[:stop])
        refused(tmp_path / "a.hdf5", "")
    for other, match in ((b"", "no format"), (b"hello", "no format"), (b"PAR1....", "needs no import")):
        (tmp_path / "a.hdf5").write_bytes(other)
        refused(tmp_path / "a.hdf5", match)
    with pytest.raises(UserError, match="is missing"):
        import_episodes(tmp_path / "none.hdf5", tmp_path / "a.parquet")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    path, real = write_hdf5(tmp_path / "a.hdf5"), builtins.__import__

    def without_h5py(name, *arguments, **options):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_h5py)
    for call in (lambda: import_episodes(path, tmp_path / "b"), hdf5_files.hdf5_library):
        with pytest.raises(ConfigError, match=r'pip install "wmpo-ray\[hdf5\]"'):
            call()


def test_an_episode_without_a_step_is_not_exported(tmp_path):
    save_episodes(tmp_path / "a.parquet", replace(make(), lengths=np.array([2, 0, 1])))
    with pytest.raises(UserError, match="row 1: an episode without a step"):
        export_robomimic(tmp_path / "a.parquet", tmp_path / "a.hdf5")
    assert not (tmp_path / "a.hdf5").exists()


def test_headers_that_keep_hdf5_busy_for_ever_are_refused(tmp_path, monkeypatch):
    save_episodes(tmp_path / "a.parquet", sound())
    export_robomimic(tmp_path / "a.parquet", tmp_path / "a.hdf5")
    monkeypatch.setattr(hdf5_files, "HEADER_SECONDS", 1)
    monkeypatch.setattr(hdf5_files, "LOOK_AT_HEADERS", hdf5_files.LOOK_AT_HEADERS + "\nwhile True: pass\n")
    with pytest.raises(UserError, match="a.hdf5 is damaged: HDF5 does not come to an end with its headers"):
        import_episodes(tmp_path / "a.hdf5", tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()
