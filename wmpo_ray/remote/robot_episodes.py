"""Episodes that robots have sent: kept as they came, and as trajectory files once they have a verdict.

    received/ID.episode          what the robot sent
    store/PURPOSE/ID.parquet     a data set for each purpose, which `collect.source`, `gate.source` and `demos.source` take
    labels.json                  verdicts that people have given since: `wmpo label`

What lands in the store is a function of the file and its label, under a name that is the episode's: landing it twice leaves
it there once, whatever was interrupted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from wmpo_client.episode_file import read_records
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import Refusal, bad
from wmpo_client.sent_images import decode_image, image_bytes
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import read_settings
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import part_writer
from wmpo_ray.data.exchange.recording import (
    MAX_EPISODE_BYTES,
    MAX_STEPS,
    UNKNOWN_START,
    EpisodeSize,
    Recording,
    as_episodes,
    check_recording,
    check_sizes,
)
from wmpo_ray.data.store_format import MAX_INSTRUCTION_BYTES

RECEIVED, STORE, LABELS, SUFFIX = "received", "store", "labels.json", ".episode"
PURPOSES = ("collect", "gate", "demos", "evaluate")
ID = re.compile(r"[a-z0-9][a-z0-9_-]{7,79}")
FAILURE = re.compile(r"[a-z0-9_]{1,64}")
MAX_FAILURES = 64

Label = Literal["success", "failure"]


class Labels(BaseModel):
    """Verdicts that came later, by the episode's id: of people, or of a reward model with its probability of success."""

    model_config = ConfigDict(extra="forbid", strict=True)
    verdicts: dict[str, Label] = {}
    probabilities: dict[str, float] = {}


class RobotEpisode(NamedTuple):
    """One episode, checked."""

    id: str
    purpose: str
    recording: Recording
    has_verdict: bool
    decided_by: str
    num_human: int  # steps that an operator made
    versions: tuple[int, ...]  # updates of the policies that acted


class EpisodeFolder:
    """The folder of a server's episodes. Landing and labelling may go on in two processes: both write whole files."""

    def __init__(self, root: Path):
        self.root, self.received, self.store = root, root / RECEIVED, root / STORE
        self.received.mkdir(parents=True, exist_ok=True)
        self._landing = threading.Lock()

    def ids(self) -> list[str]:
        """Of all episodes that have come, in order."""
        names = (path.name.removesuffix(SUFFIX) for path in self.received.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if ID.fullmatch(name))

    def path(self, id: str) -> Path:
        return self.received / f"{id}{SUFFIX}"

    def landed(self, id: str) -> Path | None:
        """Its trajectory file, if there is one."""
        paths = (self.store / purpose / f"{id}.parquet" for purpose in PURPOSES)
        return next((path for path in paths if path.exists()), None)

    def count(self, purpose: str) -> int:
        """Episodes in the store that were recorded for this."""
        return sum(1 for _ in (self.store / purpose).glob("*.parquet"))

    def labels(self) -> dict[str, Label]:
        return self._labels().verdicts

    def _labels(self) -> Labels:
        path = self.root / LABELS
        return read_settings(path, Labels) if path.exists() else Labels()

    def unlabelled(self) -> list[str]:
        """Episodes without any verdict."""
        known = self.labels()
        return [id for id in self.ids() if id not in known and self.landed(id) is None]

    def set_label(self, id: str, label: Label | None, probability: float | None = None) -> None:
        """A verdict, or None to take it back; the store follows. probability: of success, where a reward model decided."""
        known = self._labels()
        verdicts, probabilities = dict(known.verdicts), dict(known.probabilities)
        verdicts.pop(id, None), probabilities.pop(id, None)
        if label is not None:
            verdicts[id] = label
        if probability is not None:
            probabilities[id] = probability
        atomic_write(
            self.root / LABELS, Labels(verdicts=verdicts, probabilities=probabilities).model_dump_json(indent=1)
        )
        self.land(id)

    def land(self, id: str) -> str:
        """Have the store hold an episode as its file and label say; returns its verdict.

        Raises Refusal for a file that is no episode, or one that fits none of those in the store.
        """
        episode, known = read_episode(self.path(id)), self._labels()
        label, probability = known.verdicts.get(id), known.probabilities.get(id)
        with self._landing:
            if label is None and not episode.has_verdict:
                if (there := self.landed(id)) is not None:
                    there.unlink()  # its label was taken back
                return "unknown"
            success = episode.recording.success if label is None else label == "success"
            by = "a person" if probability is None else f"the reward model (probability of success {probability:.3f})"
            self._write(episode, success, by if label else episode.decided_by)
            return "success" if success else "failure"

    def land_all(self) -> None:
        """Land what came before the last interruption; an episode that cannot land stays where it is."""
        for id in self.ids():
            if self.landed(id) is None:
                try:
                    self.land(id)
                except Refusal:
                    continue

    def _write(self, episode: RobotEpisode, success: bool, decided_by: str) -> None:
        found = episode.recording
        found = replace(found, success=success)
        updates = episode.versions[0] if len(set(episode.versions)) == 1 else None
        notes = [f"decided by {decided_by}"] if decided_by else []
        if episode.num_human:
            notes.append(f"{episode.num_human} of {found.length} steps are an operator's")
        origin = Provenance(origin="real", made_by="robot", policy_version=updates, notes=tuple(notes))
        try:
            with part_writer(self.store / episode.purpose, origin, f"{episode.id}.parquet") as writer:
                writer.append(as_episodes(found, found.length, tuple(found.failures), episode.id))
        except (UserError, ValueError) as error:
            if "disk is full" in str(error):
                raise Refusal("RESOURCE_EXHAUSTED", "disk_full", "the disk is full") from error
            raise bad(f"it does not fit the episodes that are there: {error}") from error


def read_episode(path: Path) -> RobotEpisode:
    """An episode of a file that a robot sent, every size checked before memory is taken. Raises Refusal."""
    records = read_records(path)
    start = next(records).start
    if start.purpose not in PURPOSES:
        raise bad(f"an episode for {shown(start.purpose)}; known are {', '.join(PURPOSES)}")
    text = start.observation.instruction
    if not text.strip() or len(text.encode()) > MAX_INSTRUCTION_BYTES:
        raise bad(f"an instruction of {len(text.encode())} bytes; 1 to {MAX_INSTRUCTION_BYTES} are kept")
    frames, is_human, failed = [_frame(start.observation)], list[bool](), set[str]()
    actions: list[np.ndarray] = []
    versions: list[int] = []
    end, total = pb.EpisodeEnd(), frames[0].nbytes
    for record in records:
        if record.WhichOneof("what") == "end":
            end = record.end
            continue
        step = record.step
        total += image_bytes(step.observation.images)
        if total > MAX_EPISODE_BYTES or len(actions) >= MAX_STEPS:
            raise bad(f"an episode of more than {MAX_EPISODE_BYTES} bytes of frames or {MAX_STEPS} steps")
        frames.append(_frame(step.observation, frames[0].shape))
        actions.append(np.array(step.action, np.float32))
        is_human.append(step.is_human)
        failed = set(step.failures)
        if step.HasField("policy"):
            versions.append(step.policy.num_updates)
    names = _failure_names(end, failed)
    id = path.name.removesuffix(SUFFIX)
    recording = _recording(path, frames, actions, start, end, {name: name in failed for name in names})
    if any(is_human):  # a file without corrections has no column for them
        recording = replace(recording, corrections=np.array(is_human))
    return RobotEpisode(
        id, start.purpose, recording, end.verdict != pb.UNKNOWN, end.decided_by[:64], sum(is_human), tuple(versions)
    )


def _recording(
    path: Path, frames: list[np.ndarray], actions: list[np.ndarray], start: Any, end: Any, failures: dict[str, bool]
) -> Recording:
    if not actions or {each.shape for each in actions} != {actions[0].shape}:
        raise bad("an episode needs steps, and every action as many numbers as the first")
    seed = start.seed if start.seed >= 0 else UNKNOWN_START
    length = len(actions)
    found = Recording(
        np.stack(frames),
        np.stack(actions),
        length,
        end.verdict == pb.SUCCESS,
        start.observation.instruction,
        seed,
        failures,
    )
    size = EpisodeSize(path.name, length, frames[0].shape, len(actions[0]))
    try:
        check_sizes(path, [size])
        check_recording(path, size, found)
    except UserError as error:
        raise bad(str(error).replace(f"{path}, ", "")) from error
    return found


def _frame(seen: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The main camera's frame; what other cameras saw is not kept."""
    image_bytes(seen.images)
    frame = decode_image(seen.images[0])
    if shape is not None and frame.shape != shape:
        raise bad(f"a frame of {list(frame.shape)}, the first of the episode has {list(shape)}")
    return frame


def _failure_names(end: Any, failed: set[str]) -> list[str]:
    names = list(end.failure_names)
    if len(names) > MAX_FAILURES or len(set(names)) != len(names) or not all(map(FAILURE.fullmatch, names)):
        raise bad("names of failures that are none")
    if not failed <= set(names):
        raise bad("a failure that the episode's end does not name")
    return names


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The main camera's frames of a file, one at a time, for who looks at them. Raises Refusal."""
    for record in read_records(path):
        what = record.WhichOneof("what")
        if what != "end":
            yield _frame(getattr(record, what).observation)
