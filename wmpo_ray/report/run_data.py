"""What a run folder holds, read without trust: what is missing or damaged becomes a note, never an exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import load_npz
from wmpo_ray.core.untrusted import parse_json, read_json, read_lines
from wmpo_ray.fidelity.metrics import FIDELITY
from wmpo_ray.runs.other_learners import other_learners
from wmpo_ray.runs.round_folders import round_folder
from wmpo_ray.runs.summary_file import SUMMARY, read_summary

MAX_VIDEO_FILE_BYTES = 2 * 2**30  # of a video file, and of what it unpacks to
MAX_CURVES = 16  # a run trains a handful of models
DISRUPTIONS = "disruptions.npz"  # in `videos`; its "instructions" are the names of the disruptions
MAX_ROUNDS = 1000  # that the settings allow
LARGEST = 1e30  # what is beyond is no metric of a run and would break the arithmetic of an axis


@dataclass(frozen=True)
class VideoPairs:
    """The same actions in the real and in the imagined world: V videos of at most T+1 frames."""

    real: np.ndarray  # [V, T+1, H, W, 3] uint8
    imagined: np.ndarray  # the same shape
    real_success: np.ndarray  # [V] bool
    imagined_success: np.ndarray  # [V] bool
    lengths: np.ndarray  # [V] int64: steps until the end of the real episode
    instructions: list[str]  # [V]


@dataclass(frozen=True)
class PolicyVideos:
    """Episodes of one policy in the real environment."""

    frames: np.ndarray  # [V, T+1, H, W, 3] uint8
    success: np.ndarray  # [V] bool
    lengths: np.ndarray  # [V] int64
    instructions: list[str]  # [V]
    recovered: np.ndarray  # [V] bool: a success after a failed attempt


@dataclass(frozen=True)
class DisruptedStarts:
    """First frames of n held-out starts under each of D disruptions."""

    frames: np.ndarray  # [D, n, H, W, 3] uint8
    names: list[str]  # [D]


@dataclass
class RunData:
    """Everything that the report shows of a run, or of one of its rounds."""

    name: str
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)  # in the order of updates, one entry for each
    trainings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # supervised ones: steps in order
    fidelity: dict[str, Any] = field(default_factory=dict)  # of the imagined videos, where it was measured
    pairs: VideoPairs | None = None
    base: PolicyVideos | None = None
    final: PolicyVideos | None = None
    disrupted: DisruptedStarts | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # results of learners from outside, by label
    round: int = 1
    later: list[RunData] = field(default_factory=list)  # rounds 2, 3 and so on, with the summary of the run
    notes: list[str] = field(default_factory=list)  # one sentence for each file that is damaged

    @property
    def stages(self) -> list[str]:
        """All stages of the run in order, as its recipe has them; those that are done where the summary has no recipe."""
        names = self.stages_planned
        return [*names, *(name for name in mapping(self.summary, "stages") if name not in names)]

    @property
    def stages_planned(self) -> list[str]:
        """The stages of the recipe in order; empty where the summary has no recipe."""
        planned = mapping(self.summary, "recipe").get("stages")
        return [name for name in planned if isinstance(name, str)] if isinstance(planned, list) else []

    def stage_metrics(self, stage: str) -> dict[str, Any]:
        """Metrics of a stage; empty if it has not run."""
        return mapping(self.summary, "stages", stage, "metrics")

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(update, value) of one metric, where it was logged."""
        pairs = [(float(line["update"]), number(line, key)) for line in self.metrics]
        return [(update, value) for update, value in pairs if value is not None]


def mapping(data: Any, *path: str) -> dict[str, Any]:
    """The dictionary at `path`, or an empty one."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def number(data: Any, *path: str) -> float | None:
    """The finite number at `path`, or None."""
    value = mapping(data, *path[:-1]).get(path[-1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # JSON allows integers that no float holds.
    return float(value) if abs(value) < LARGEST and math.isfinite(value) else None


def numbers(data: Any, *path: str) -> list[float]:
    """The list of finite numbers at `path`, or an empty one."""
    values = mapping(data, *path[:-1]).get(path[-1])
    if not isinstance(values, list):
        return []
    found = [number({"value": value}, "value") for value in values]
    return [value for value in found if value is not None] if None not in found else []


def read_run(folder: Path) -> RunData:
    """Read whatever of `summary.json`, `metrics.jsonl`, `curves/*.jsonl`, `fidelity.json` and `videos/*.npz` is there.

    Raises UserError if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the one that --out named")
    run = read_run_metrics(folder)
    return replace(
        _with_videos(run, folder, run.notes),
        later=[_with_videos(later, round_folder(folder, later.round), run.notes) for later in run.later],
    )


def _with_videos(run: RunData, folder: Path, notes: list[str]) -> RunData:
    videos = folder / "videos"
    return replace(
        run,
        pairs=_read_pairs(videos / "side_by_side.npz", notes),
        base=_read_policy_videos(videos / "base.npz", notes),
        final=_read_policy_videos(videos / "final.npz", notes),
        disrupted=_read_disrupted(videos / DISRUPTIONS, notes),
    )


def read_run_metrics(folder: Path) -> RunData:
    """The same without the videos: what `summary.json`, `metrics.jsonl` and `curves/*.jsonl` hold, of all rounds."""
    notes: list[str] = []
    summary = _read_object(folder / SUMMARY, notes, read_summary)
    run = _read_round(folder, 1, summary, notes)
    run.notes, run.others = notes, other_learners(folder, notes)
    for round in range(2, MAX_ROUNDS + 1):
        if not round_folder(folder, round).is_dir():
            break
        run.later.append(_read_round(round_folder(folder, round), round, summary, notes, run.name))
    return run


def _read_round(folder: Path, round: int, summary: dict[str, Any], notes: list[str], name: str = "") -> RunData:
    told = summary.get("name")
    return RunData(
        name=name or (told if isinstance(told, str) and told else folder.resolve().name),
        summary=summary,
        metrics=_read_metrics(folder / "metrics.jsonl", notes, "update"),
        trainings=_read_trainings(folder / "curves", notes),
        fidelity=_read_object(folder / FIDELITY, notes),
        round=round,
    )


def _read_object(path: Path, notes: list[str], read: Callable[[Path], Any] = read_json) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    if not path.exists():
        return {}
    try:
        content = read(path)
    except UserError as error:
        notes.append(f"{path.name} is not readable as JSON ({error}).")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} holds no JSON object.")
        return {}
    return content


def _read_trainings(folder: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    paths = sorted(folder.glob("*.jsonl"))
    if len(paths) > MAX_CURVES:
        notes.append(f"{folder.name}: only {MAX_CURVES} of {len(paths)} files are read.")
    return {path.stem: _read_metrics(path, notes, "step") for path in paths[:MAX_CURVES]}


def _read_metrics(path: Path, notes: list[str], key: str) -> list[dict[str, Any]]:
    """The lines of a file by the number of their update or step, whose name is `key`."""
    if not path.exists():
        return []
    by_number: dict[float, dict[str, Any]] = {}
    damaged = 0
    try:
        for text in read_lines(path):
            if not text.strip():
                continue
            line = _parse_line(text)
            place = number(line, key)
            if place is None:
                damaged += 1
            else:
                # An update can have several lines; a resumed run repeats some, and then the later value counts.
                by_number.setdefault(place, {}).update(line)
    except UserError as error:
        notes.append(f"{error}.")
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} left out.")
    return [by_number[place] for place in sorted(by_number)]


def _parse_line(text: bytes) -> Any:
    try:
        return parse_json(text, "a line")
    except UserError:
        return None


def _read_arrays(
    path: Path, names: tuple[str, ...], notes: list[str], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        return load_npz(path, names, MAX_VIDEO_FILE_BYTES, optional)
    except UserError as error:
        notes.append(f"{error}.")
        return None


def _checked(arrays: dict[str, np.ndarray], frames: tuple[str, ...], path: Path, notes: list[str]) -> list[str] | None:
    """The instructions, if all arrays of a video file fit each other."""
    shape = arrays[frames[0]].shape
    fits = len(shape) == 5 and shape[-1] == 3 and shape[1] > 0
    fits = fits and all(arrays[name].shape == shape and arrays[name].dtype == np.uint8 for name in frames)
    others = [value for name, value in arrays.items() if name not in frames and name != "instructions"]
    fits = fits and all(value.shape == shape[:1] and value.dtype.kind in "biu" for value in others)
    told = arrays["instructions"]
    instructions = _parse_line(str(told).encode()) if told.shape == () and told.dtype.kind == "U" else None
    if not fits or not isinstance(instructions, list) or len(instructions) != shape[0]:
        notes.append(f"videos/{path.name}: its arrays do not fit each other (frames {shape}).")
        return None
    return [str(instruction) for instruction in instructions]


def _read_pairs(path: Path, notes: list[str]) -> VideoPairs | None:
    names = ("real", "imagined", "real_success", "imagined_success", "lengths", "instructions")
    arrays = _read_arrays(path, names, notes)
    instructions = _checked(arrays, ("real", "imagined"), path, notes) if arrays else None
    if arrays is None or instructions is None:
        return None
    return VideoPairs(
        real=arrays["real"],
        imagined=arrays["imagined"],
        real_success=arrays["real_success"].astype(bool),
        imagined_success=arrays["imagined_success"].astype(bool),
        lengths=arrays["lengths"].astype(np.int64),
        instructions=instructions,
    )


def _read_disrupted(path: Path, notes: list[str]) -> DisruptedStarts | None:
    arrays = _read_arrays(path, ("frames", "instructions"), notes)
    names = _checked(arrays, ("frames",), path, notes) if arrays else None
    return None if arrays is None or names is None else DisruptedStarts(arrays["frames"], names)


def _read_policy_videos(path: Path, notes: list[str]) -> PolicyVideos | None:
    names = ("frames", "success", "lengths", "instructions")
    arrays = _read_arrays(path, names, notes, ("recovered",))
    instructions = _checked(arrays, ("frames",), path, notes) if arrays else None
    if arrays is None or instructions is None:
        return None
    success, lengths = arrays["success"].astype(bool), arrays["lengths"].astype(np.int64)
    recovered = arrays.get("recovered", np.zeros(len(success), bool)).astype(bool)
    return PolicyVideos(arrays["frames"], success, lengths, instructions, recovered)
