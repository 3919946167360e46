"""Episodes of other formats on their way in: what every reader gives, and what is checked of all of them."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.untrusted import parse_json
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.episodes import RaggedFrames
from wmpo_ray.data.file_facts import action_problem
from wmpo_ray.data.store_format import MAX_INSTRUCTION_BYTES

MAX_EPISODES = 10**6
MAX_STEPS = 10**5  # of one episode
MAX_SIDE = 4096  # pixels
MAX_DIMS = 1024  # of an action
MAX_EPISODE_BYTES = 2**31  # of the frames of one episode
MAX_JSON_BYTES = 2**18  # of settings that come with the episodes
MAX_JSON_DEPTH = 32
UNKNOWN_START = -1  # seed of an episode whose scene no environment can rebuild


class EpisodeSize(NamedTuple):
    """What is known of an episode before it is read."""

    label: str  # where it stands in the file, such as "data/demo_3"
    num_steps: int
    frame_shape: tuple[int, ...]  # H, W, 3
    action_dims: int


@dataclass(frozen=True)
class Recording:
    """One episode."""

    frames: np.ndarray  # [length + 1, H, W, 3] uint8
    actions: np.ndarray  # [n, D] float32 or float64, n >= length: those after the end too, if there are any
    length: int  # steps
    success: bool
    instruction: str
    seed: int = UNKNOWN_START
    failures: dict[str, bool] = field(default_factory=dict)
    corrections: np.ndarray | None = None  # [length] bool: an operator's steps; None: none


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a file that the file does not say itself."""

    instruction: str = ""  # of every episode; "": as the file has it
    image_key: str = ""  # of the camera; "": the format's usual one
    instruction_knob: str = "--instruction TEXT"  # what errors name
    image_key_knob: str = "--image-key"


class EpisodeReader(ABC):
    """A file of another format that is open. Everything raises UserError, which names the file and the episode."""

    def __init__(self, path: Path, options: ImportOptions):
        self.path, self.options = path, options
        self.noted: Counter[str] = Counter()  # what was assumed or left out -> in how many episodes

    @abstractmethod
    def sizes(self) -> Sequence[EpisodeSize]:
        """Of all episodes in order, from the headers alone."""

    @abstractmethod
    def read(self, index: int) -> Recording:
        """One episode."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def horizon(self) -> int:
        """Steps that the file says an episode may have; 0 where it does not."""
        return 0

    @property
    def provenance(self) -> Provenance:
        return Provenance(made_by=self.path.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def instruction_of(self, label: str, found: object) -> str:
        """The user's instruction, or that of the file."""
        text = self.options.instruction or found
        if not isinstance(text, str):
            raise UserError(f"{self.path}, {label}: its instruction is no text")
        if not text.strip():
            raise UserError(f"{self.path}, {label}: no instruction; give it with {self.options.instruction_knob}")
        if len(text.encode()) > MAX_INSTRUCTION_BYTES:
            raise UserError(
                f"{self.path}, {label}: the instruction has {len(text.encode())} bytes, at most {MAX_INSTRUCTION_BYTES} fit"
            )
        return text


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object of a file, small enough to keep; {} for no text."""
    if len(text) > MAX_JSON_BYTES:
        raise UserError(f"{where} has {len(text)} bytes, more than the {MAX_JSON_BYTES} that are read of it")
    found = parse_json(text, where) if text else {}
    if not isinstance(found, dict):
        raise UserError(f"{where} is no JSON object")
    if _depth(found) > MAX_JSON_DEPTH:
        raise UserError(f"{where} is nested deeper than {MAX_JSON_DEPTH}")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds text that is no Unicode") from None
    return found


def _depth(value: object, at: int = 1) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_depth(each, at + 1) for each in inner), default=at) if at <= MAX_JSON_DEPTH else at


def check_sizes(path: Path, sizes: Sequence[EpisodeSize]) -> None:
    """Refuse sizes that are absurd, or not the same in all episodes."""
    if not sizes:
        raise UserError(f"{path} holds no episodes")
    if len(sizes) > MAX_EPISODES:
        raise UserError(f"{path} holds {len(sizes)} episodes, at most {MAX_EPISODES} are read")
    first = sizes[0]
    for size in sizes:
        where = f"{path}, {size.label}"
        if not 1 <= size.num_steps <= MAX_STEPS:
            raise UserError(f"{where}: {size.num_steps} steps; an episode has 1 to {MAX_STEPS}")
        shape = size.frame_shape
        if len(shape) != 3 or shape[2] != 3 or not all(1 <= side <= MAX_SIDE for side in shape):
            raise UserError(
                f"{where}: frames of shape {shape}; they must be (height, width, 3), at most {MAX_SIDE} a side"
            )
        if not 1 <= size.action_dims <= MAX_DIMS:
            raise UserError(f"{where}: actions of {size.action_dims} dimensions; they have 1 to {MAX_DIMS}")
        if (num_bytes := (size.num_steps + 1) * math.prod(shape)) > MAX_EPISODE_BYTES:
            raise UserError(f"{where}: {num_bytes} bytes of frames, more than the {MAX_EPISODE_BYTES} of any episode")
        if shape != first.frame_shape:
            raise UserError(
                f"{where}: frames of {_pixels(shape)}, those of {first.label} are {_pixels(first.frame_shape)}"
            )
        if size.action_dims != first.action_dims:
            raise UserError(
                f"{where}: actions of {size.action_dims} dimensions, those of {first.label} have {first.action_dims}"
            )


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} pixels"


def check_recording(path: Path, size: EpisodeSize, found: Recording) -> None:
    """Refuse an episode that is not what its size says, and actions that are no numbers in [-1, 1]."""
    where = f"{path}, {size.label}"
    if not 1 <= found.length <= len(found.actions):
        raise UserError(
            f"{where}: it ends after {found.length} of its {len(found.actions)} actions; 1 or more are needed"
        )
    expected = (found.length + 1, *size.frame_shape)
    if found.frames.dtype != np.uint8 or found.frames.shape != expected:
        raise UserError(f"{where}: frames are {found.frames.dtype} {found.frames.shape}, expected uint8 {expected}")
    if found.actions.dtype.kind != "f" or found.actions.shape[1:] != (size.action_dims,):
        raise UserError(
            f"{where}: actions are {found.actions.dtype} {found.actions.shape}, expected floats of {size.action_dims} dimensions"
        )
    if problem := action_problem(found.actions):
        raise UserError(f"{where}: {problem}; scale the actions of the file to [-1, 1]")


def as_episodes(found: Recording, horizon: int, failures: Sequence[str], where: str) -> Episodes:
    """One episode with room for `horizon` steps; actions after the recorded ones are zeros."""
    if set(found.failures) != set(failures):
        raise UserError(
            f"{where}: failure modes {shown(sorted(found.failures))}, those before {shown(sorted(failures))}"
        )
    actions = np.zeros((1, horizon, found.actions.shape[1]), np.float32)
    actions[0, : len(found.actions)] = found.actions
    corrections = None
    if found.corrections is not None:
        corrections = np.zeros((1, horizon), bool)
        corrections[0, : found.length] = found.corrections
    return Episodes(
        RaggedFrames([found.frames], horizon, found.frames.shape[1:]),
        actions,
        np.array([found.length], np.int64),
        np.array([found.success], bool),
        (found.instruction,),
        np.array([found.seed], np.int64),
        {name: np.array([found.failures[name]], bool) for name in failures},
        corrections,
    )
