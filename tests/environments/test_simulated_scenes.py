"""What environments with a simulator share: saved scenes come back bit for bit, and nothing is drawn twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.simulators.saved_scenes import check_starts_are_scenes, pack_scene, unpack_scene
from wmpo_ray.environments.simulators.simulated_scenes import SimulatedScenes

PARTS = st.lists(arrays(np.float64, array_shapes(min_dims=0, max_dims=3, max_side=4)), min_size=1, max_size=5)


@given(PARTS, st.binary(max_size=16))
def test_a_scene_comes_back_bit_for_bit(arrays_of_numbers, header):
    parts = {f"part {i}": values for i, values in enumerate(arrays_of_numbers)}
    saved = pack_scene(parts, header)
    assert saved == header + b"".join(values.tobytes() for values in arrays_of_numbers), "nothing else is stored"
    loaded = unpack_scene(0, saved, parts, header)
    assert [loaded[name].tobytes() for name in parts] == [values.tobytes() for values in arrays_of_numbers]
    assert [loaded[name].shape for name in parts] == [values.shape for values in arrays_of_numbers]


@pytest.mark.parametrize("change", [lambda saved: saved[:-1], lambda saved: saved + b"0", lambda saved: b""])
def test_another_number_of_bytes_is_no_scene(change):
    parts = {"hand": np.zeros(3), "closed": np.array(False)}
    with pytest.raises(ValueError, match=r"start 7: its saved_state has \d+ bytes, a scene has 36"):
        unpack_scene(7, change(pack_scene(parts, b"task")), parts, b"task")


def test_a_loaded_scene_can_be_changed_without_changing_what_was_saved():
    saved = pack_scene({"hand": np.zeros(3)})
    unpack_scene(0, saved, {"hand": np.zeros(3)})["hand"][:] = 1
    assert saved == bytes(24)


def test_a_start_without_a_scene_is_named():
    starts = seeded_starts([0, 1, 2])
    check_starts_are_scenes([*starts, replace(starts[0], seed=None, saved_state=b"")])
    with pytest.raises(ValueError, match="start 1 has no scene"):
        check_starts_are_scenes([starts[0], replace(starts[1], seed=None)])


class Counters(SimulatedScenes):
    """Scenes that count their steps, and how often they were drawn."""

    action_dim, frame_shape, instructions = 2, (4, 4, 3), ("count",)

    def restore(self, starts):
        self._begin(len(starts))
        self.steps, self.drawn = [0] * len(starts), [0] * len(starts)

    def advance(self, actions):
        for i in np.flatnonzero(~self.terminated):
            self.steps[i] += 1
            self._changed(i)

    def _draw(self, i):
        self.drawn[i] += 1
        return np.full(self.frame_shape, self.steps[i], np.uint8)


def test_a_scene_is_drawn_when_it_is_looked_at_and_once_for_each_change():
    scenes = Counters()
    scenes.restore(seeded_starts([0, 1]))
    assert scenes.drawn == [0, 0]
    scenes.render()
    scenes.observe()
    assert scenes.drawn == [1, 1]
    scenes.terminated[1] = True
    scenes.advance(np.zeros((2, 2), np.float32))
    assert scenes.render()[:, 0, 0, 0].tolist() == [1, 0] and scenes.drawn == [2, 1]


def test_a_check_leaves_no_scene_behind():
    scenes = Counters()
    scenes.check()
    assert scenes.drawn == [2] and len(scenes.terminated) == 0 and scenes.render().shape == (0, 4, 4, 3)
