"""Episodes as a recording of Rerun (`.rrd`), real and imagined ones side by side on one timeline of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import atomic_file
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.data_set import load_data, provenance_of
from wmpo_ray.data.exchange.lerobot_export import png_of

TIMELINE = "step"
MAX_TABS = 50  # of episodes that the viewer opens with; the others are in its list
# What the recording has no place for.
NOT_EXPORTED = "start states, failure modes, and actions after an episode's end"


class Side(NamedTuple):
    """One of the episodes that are shown together."""

    name: str  # "real", "imagined", or of a file
    frames: np.ndarray  # [n+1, H, W, 3] uint8
    success: bool
    actions: np.ndarray | None = None  # [n, D] float32


class Shown(NamedTuple):
    """Episodes that begin at the same start, such as a real one and the same actions imagined."""

    label: str
    instruction: str
    sides: tuple[Side, ...]


def rerun_library() -> tuple[Any, Any]:
    """The modules rerun and rerun.blueprint. Raises ConfigError where they are not installed."""
    try:
        import rerun
        import rerun.blueprint
    except ImportError:
        raise ConfigError('Rerun recordings need the package rerun-sdk: pip install "wmpo-ray[rerun]"') from None
    if not hasattr(rerun, "RecordingStream"):  # the package called rerun on PyPI is another one
        raise ConfigError('the installed package rerun is not that of rerun.io: pip install "wmpo-ray[rerun]"')
    return rerun, rerun.blueprint


def export_rerun(path: Path, out: Path, beside: Path | None = None) -> int:
    """Write the episodes of a trajectory file, or of a folder of them, as a recording; returns how many there are.

    Each is shown beside the one in the same row of `beside`, where that is given. Raises UserError for files that cannot
    be read or do not belong together, and on a full disk; ConfigError where rerun-sdk is not installed.
    """
    rerun_library()
    sources = {name: load_data(file) for name, file in _named(path, beside).items()}
    counts = [len(episodes) for episodes in sources.values()]
    if len(set(counts)) > 1:
        raise UserError(
            f"{path} holds {counts[0]} episodes, {beside} {counts[1]}; those in the same row are shown together"
        )
    write_recording(out, path.stem, _rows(sources, str(beside)))
    return counts[0]


def _named(path: Path, beside: Path | None) -> dict[str, Path]:
    """A name for each side: its origin, or where that does not tell them apart that of the file."""
    files = [path] if beside is None else [path, beside]
    origins = [(provenance_of(file) or Provenance()).origin for file in files]
    for names in (origins, [file.stem for file in files], ["first", "second"]):
        if len(set(names)) == len(files):
            return dict(zip(names, files, strict=True))
    raise AssertionError("the last names differ")


def _rows(sources: dict[str, Episodes], beside: str) -> Iterator[Shown]:
    first = next(iter(sources.values()))
    for row in range(len(first)):
        texts = {episodes.instructions[row] for episodes in sources.values()}
        if len(texts) > 1:
            raise UserError(
                f"{beside}, row {row}: another instruction than in the file beside it; their rows must belong together"
            )
        sides = (_side(name, episodes, row) for name, episodes in sources.items())
        yield Shown(f"episode_{row:04d}", texts.pop(), tuple(sides))


def _side(name: str, episodes: Episodes, row: int) -> Side:
    length = int(episodes.lengths[row])
    return Side(name, episodes.frames[row, : length + 1], bool(episodes.success[row]), episodes.actions[row, :length])


def write_recording(out: Path, name: str, episodes: Iterable[Shown]) -> int:
    """Write `out`; it appears when it is whole. Returns the number of episodes."""
    rerun, blueprint = rerun_library()
    tabs, count = [], 0
    with atomic_file(out) as partial:
        recording = rerun.RecordingStream("wmpo", recording_id=name)
        recording.save(partial)
        try:
            for count, shown in enumerate(episodes, 1):
                _log(rerun, recording, shown)
                if count <= MAX_TABS:
                    tabs.append(_tab(blueprint, shown))
            if tabs:
                recording.send_blueprint(blueprint.Blueprint(blueprint.Tabs(*tabs)))
            recording.flush()
        finally:
            recording.disconnect()
    return count


def _log(rerun: Any, recording: Any, shown: Shown) -> None:
    outcomes = [
        f"- {side.name}: {'success' if side.success else 'failure'}, {len(side.frames) - 1} steps"
        for side in shown.sides
    ]
    text = "\n".join([f"**{shown.instruction}**", "", *outcomes])
    recording.log(f"{shown.label}/about", rerun.TextDocument(text, media_type="text/markdown"), static=True)
    for side in shown.sides:
        place, pictures = f"{shown.label}/{side.name}", [png_of(frame) for frame in side.frames]
        columns = rerun.EncodedImage.columns(blob=pictures, media_type=["image/png"] * len(pictures))
        recording.send_columns(f"{place}/camera", [rerun.TimeColumn(TIMELINE, sequence=range(len(pictures)))], columns)
        for dimension, values in enumerate([] if side.actions is None else side.actions.T):
            steps = [rerun.TimeColumn(TIMELINE, sequence=range(len(values)))]
            recording.send_columns(f"{place}/action/{dimension}", steps, rerun.Scalars.columns(scalars=values))


def _tab(blueprint: Any, shown: Shown) -> Any:
    views = [
        blueprint.Spatial2DView(origin=f"{shown.label}/{side.name}/camera", name=side.name) for side in shown.sides
    ]
    below = [blueprint.TextDocumentView(origin=f"{shown.label}/about", name="about")]
    if any(side.actions is not None for side in shown.sides):
        contents = [f"/{shown.label}/{side.name}/action/**" for side in shown.sides if side.actions is not None]
        below.append(blueprint.TimeSeriesView(origin=f"/{shown.label}", contents=contents, name="actions"))
    return blueprint.Vertical(blueprint.Horizontal(*views), blueprint.Horizontal(*below), name=shown.label)
