"""Demonstrations in the HDF5 layout of robomimic and MimicGen, read.

`data/demo_i` holds `actions` [n, D], `obs/<camera>_image` [n, H, W, 3] (the frame before each action), and often
`next_obs` (the frame after it), `rewards` [n] and `dones` [n]. Attributes: `num_samples` of a demonstration, `env_args`
(JSON) and `total` of all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.exchange.hdf5_files import (
    child_dataset,
    child_group,
    explained,
    number_attribute,
    open_hdf5,
    text_attribute,
)
from wmpo_ray.data.exchange.recording import (
    MAX_EPISODES,
    MAX_STEPS,
    UNKNOWN_START,
    EpisodeReader,
    EpisodeSize,
    ImportOptions,
    Recording,
    json_object,
)

if TYPE_CHECKING:
    import h5py

IMAGE_KEY = "agentview_image"
OWN_KEY = "wmpo_ray"  # what this program says of an episode or a file that the layout has no word for, as JSON
CORRECTIONS = "corrections"  # 1 where an operator made the step, in files that this program wrote
READ = {"actions", "obs", "next_obs", "rewards", "dones", CORRECTIONS}
_DEMO = re.compile(r"demo_\d+")
NO_LAST_FRAME = "without next_obs, so the last action is dropped: the frame after it is not there"
CUT = "frames after the first success are left out"
ASSUMED = "neither rewards nor dones: taken for a success, as a demonstration is"


class RobomimicReader(EpisodeReader):
    def __init__(self, path: Path, options: ImportOptions):
        super().__init__(path, options)
        self._key = options.image_key or IMAGE_KEY
        self._file = open_hdf5(path)
        try:
            with explained(path):
                data = child_group(path, self._file, "data")
                if data is None:
                    raise UserError(f"{path} has no group data, where robomimic and MimicGen keep their demonstrations")
                self._data = data
                if len(data) > MAX_EPISODES:
                    raise UserError(f"{path} holds {len(data)} episodes, at most {MAX_EPISODES} are read")
                names = [name for name in data if _DEMO.fullmatch(name)]
                self._names = sorted(names, key=lambda name: int(name.removeprefix("demo_")))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        with explained(self.path):
            self._file.close()

    @cached_property
    def _own(self) -> dict[str, Any]:
        """What this program wrote of the file as a whole."""
        with explained(self.path):
            return self._json(self._data, OWN_KEY)

    @cached_property
    def _env_args(self) -> dict[str, Any]:
        with explained(self.path):
            return self._json(self._data, "env_args")

    @property
    def horizon(self) -> int:
        found = self._own.get("horizon", 0)
        if not isinstance(found, int) or not 0 <= found <= MAX_STEPS:
            raise UserError(f"{self.path}: horizon = {found!r}; an episode has at most {MAX_STEPS} steps")
        return found

    @property
    def provenance(self) -> Provenance:
        if "provenance" in self._own:
            try:
                return Provenance.model_validate(self._own["provenance"])
            except ValueError as error:
                raise UserError(
                    f"{self.path}: what it says of its origin is not valid ({type(error).__name__})"
                ) from None
        return Provenance(made_by=self.path.name, environment=self._env_args)

    def sizes(self) -> Sequence[EpisodeSize]:
        with explained(self.path):
            return [self._size(name) for name in self._names]

    def _size(self, name: str) -> EpisodeSize:
        demo, actions, images, after = self._parts(name)
        count = number_attribute(self.path, demo, "num_samples")
        if len({len(actions), len(images), *([] if after is None else [len(after)])}) > 1 or count not in (
            None,
            len(actions),
        ):
            raise UserError(
                f"{self.path}, data/{name}: {len(actions)} actions, {len(images)} frames, num_samples={count}; they must "
                "be as many"
            )
        if after is not None and after.shape != images.shape:
            raise UserError(f"{self.path}, data/{name}: next_obs is {after.shape}, obs {images.shape}")
        return EpisodeSize(f"data/{name}", len(actions) - (after is None), images.shape[1:], actions.shape[1])

    def _parts(self, name: str) -> tuple[h5py.Group, h5py.Dataset, h5py.Dataset, h5py.Dataset | None]:
        """(group, actions, frames before each action, frames after it if they are there) of a demonstration."""
        demo, where = child_group(self.path, self._data, name), f"{self.path}, data/{name}"
        actions = None if demo is None else child_dataset(self.path, demo, "actions", "f", 2)
        if demo is None or actions is None:
            raise UserError(f"{where} has no actions")
        before, after = (child_group(self.path, demo, each) for each in ("obs", "next_obs"))
        images = None if before is None else child_dataset(self.path, before, self._key, "u", 4)
        if images is None:
            cameras = [each for each in (before or ()) if each.endswith("_image")][:10]
            raise UserError(
                f"{where} has no obs/{self._key}; "
                + (
                    f"there are {', '.join(cameras)}: choose one with {self.options.image_key_knob}"
                    if cameras
                    else "there are no images"
                )
            )
        return demo, actions, images, None if after is None else child_dataset(self.path, after, self._key, "u", 4)

    def read(self, index: int) -> Recording:
        name = self._names[index]
        with explained(self.path):
            demo, actions, images, after = self._parts(name)
            own = self._json(demo, OWN_KEY)
            success, end = self._outcome(demo, own, len(actions))
            length = min(end, len(actions) - (after is None))
            frames = np.asarray(images[: length + 1])
            if after is not None:
                frames = np.concatenate([frames[:length], after[length - 1 : length]])
            self._note(demo, length < end, end < len(actions))
            found = own.get("instruction") or self._language()
            executed = np.asarray(actions[: len(actions) - (after is None)])
            marks = self._series(demo, CORRECTIONS, len(actions)) if own else None  # of others it means nothing known
        seed, failures = own.get("seed", UNKNOWN_START), own.get("failures", {})
        if not isinstance(seed, int) or abs(seed) >= 2**63 or not _are_flags(failures):
            raise UserError(f"{self.path}, data/{name}: its attribute {OWN_KEY} is damaged")
        text = self.instruction_of(f"data/{name}", found)
        corrections = None if marks is None else marks[:length] > 0
        return Recording(frames, executed, length, success, text, seed, failures, corrections)

    def _outcome(self, demo: h5py.Group, own: dict[str, Any], num_steps: int) -> tuple[bool, int]:
        """(success, steps until it or until the end). Shaped rewards say nothing of it."""
        rewards = self._series(demo, "rewards", num_steps)
        settings = self._env_args.get("env_kwargs")
        is_shaped = isinstance(settings, dict) and bool(settings.get("reward_shaping"))
        dones = self._series(demo, "dones", num_steps)
        if isinstance(own.get("success"), bool):
            return own["success"], num_steps
        if rewards is None or is_shaped:
            if dones is None:
                self.noted[ASSUMED] += 1
                return True, num_steps
            rewards = dones
        hits = np.flatnonzero(rewards > 0)
        return (True, int(hits[0]) + 1) if len(hits) else (False, num_steps)

    def _series(self, demo: h5py.Group, name: str, num_steps: int) -> np.ndarray | None:
        found = child_dataset(self.path, demo, name, "biuf", 1)
        if found is None:
            return None
        if len(found) != num_steps:
            raise UserError(f"{self.path}, {found.name} has {len(found)} values for {num_steps} actions")
        return np.asarray(found)

    def _language(self) -> object:
        """LIBERO's files have the instruction of their task beside the environment's settings."""
        return self._json(self._data, "problem_info").get("language_instruction", "")

    def _note(self, demo: h5py.Group, has_no_last_frame: bool, is_cut: bool) -> None:
        self.noted[NO_LAST_FRAME] += has_no_last_frame
        self.noted[CUT] += is_cut
        left_out = sorted(set(demo) - READ)
        obs = child_group(self.path, demo, "obs")
        left_out += sorted(f"obs/{each}" for each in (obs or ()) if each != self._key)
        left_out += ["model_file"] if "model_file" in demo.attrs else []
        for each in left_out[:50]:
            self.noted[f"{each[:100]} is left out"] += 1

    def _json(self, node: h5py.Group, name: str) -> dict[str, Any]:
        text = text_attribute(self.path, node, name)
        return json_object(text, f"{self.path}, attribute {name} of {node.name}")


def _are_flags(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(flag, bool) for flag in value.values())
