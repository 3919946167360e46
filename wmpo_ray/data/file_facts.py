"""What a trajectory file, or a folder of them, holds, and what is wrong with it: `wmpo data info` and `wmpo data check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import ActionStatistics, Provenance, about_of, statistics_of
from wmpo_ray.data.data_set import files_of, load_data, provenance_of
from wmpo_ray.data.store import StoredFrames, load_episodes
from wmpo_ray.data.store_format import opened

ACTION_BOUND = 1 + 1e-6  # actions lie in [-1, 1]; a rounding beyond is none
MAX_PROBLEMS = 100  # named in one file
STATISTICS_TOLERANCE = 1e-6  # a sum of the same numbers may be rounded another way on another processor


@dataclass(frozen=True)
class FileFacts:
    """Sizes and contents of a trajectory file, or of a folder of them."""

    num_episodes: int
    num_steps: int  # executed, of all episodes
    lengths: tuple[int, int]  # shortest, longest; steps
    horizon: int  # T: steps of the longest episode that the file has room for
    frame_size: tuple[int, int]  # height, width; pixels
    action_dims: int
    success_share: float | None  # None for a file without episodes
    instructions: dict[str, int]  # instruction -> episodes, the most frequent first
    failures: dict[str, int]  # failure mode -> episodes that showed it
    num_unknown_starts: int  # episodes whose start state no environment can rebuild
    format: int  # the latest of all files
    num_files: int
    provenance: Provenance | None
    statistics: ActionStatistics
    statistics_stored: bool  # or computed now: files of earlier versions have none


def facts_of(path: Path) -> FileFacts:
    """Reads everything but the frames. Raises UserError for what is damaged or none of ours."""
    files, episodes = files_of(path), load_data(path)
    stored = about_of(path).statistics if len(files) == 1 and files[0] == path else None
    lengths, (height, width, _) = episodes.lengths, episodes.frames.shape[2:]
    return FileFacts(
        num_episodes=len(episodes),
        num_steps=int(lengths.sum()),
        lengths=(int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0),
        horizon=episodes.actions.shape[1],
        frame_size=(height, width),
        action_dims=episodes.actions.shape[2],
        success_share=float(episodes.success.mean()) if len(episodes) else None,
        instructions=dict(Counter(episodes.instructions).most_common()),
        failures={name: int(flags.sum()) for name, flags in episodes.failures.items()},
        num_unknown_starts=int((episodes.seeds < 0).sum()),
        format=max(map(format_of, files)),
        num_files=len(files),
        provenance=provenance_of(path),
        statistics=stored or statistics_of(executed_actions(episodes)),
        statistics_stored=stored is not None,
    )


def format_of(file: Path) -> int:
    with opened(file) as (_, header):
        return header.format


def executed_actions(episodes: Episodes) -> list[np.ndarray]:
    """The actions [length, D] of each episode up to its end."""
    return [episodes.actions[i, :length] for i, length in enumerate(episodes.lengths)]


def problems_of(path: Path) -> list[str]:
    """Read the whole of a file, or of each of a folder, and say what is wrong: a line for each, with the file and the row.

    At most `MAX_PROBLEMS` lines for a file.
    """
    if path.is_dir():
        try:
            found = [problem for file in files_of(path) for problem in problems_of(file)]
            if not found:
                load_data(path)  # whether the files fit each other
            return found
        except UserError as error:
            return [str(error)]
    try:
        episodes, about = load_episodes(path, cache_bytes=0), about_of(path)
    except UserError as error:
        return [str(error)]
    found = []
    for row in range(len(episodes)):
        found += [f"{path}, row {row}: {problem}" for problem in row_problems(episodes, row)]
    found += unreadable_frames(path, episodes)
    if about.statistics is not None and not _agree(about.statistics, statistics_of(executed_actions(episodes))):
        found.append(f"{path}: its stored statistics are not those of its actions")
    more = len(found) - MAX_PROBLEMS
    return found[:MAX_PROBLEMS] + ([f"{path}: and {more} more"] if more > 0 else [])


def row_problems(episodes: Episodes, row: int) -> list[str]:
    """What is wrong with one episode, its frames apart."""
    length, found = int(episodes.lengths[row]), []
    if not length:
        found.append("an episode without a step")
    if not episodes.instructions[row].strip():
        found.append("no instruction")
    if problem := action_problem(episodes.actions[row, :length]):
        found.append(problem)
    return found


def action_problem(actions: np.ndarray) -> str:
    """The first action [n, D] that is no number or lies outside of [-1, 1], in words; "" if there is none."""
    wrong = ~(np.abs(actions) <= ACTION_BOUND)  # true for NaN too
    if not wrong.any():
        return ""
    step, dimension = map(int, np.argwhere(wrong)[0])
    value = float(actions[step, dimension])
    return f"the action of step {step}, dimension {dimension}, is {value:g}, outside of [-1, 1]"


def unreadable_frames(path: Path, episodes: Episodes) -> list[str]:
    """A line for each row group whose frames cannot be read, with its rows."""
    frames, found, start = episodes.frames, [], 0
    assert isinstance(frames, StoredFrames)
    for group, size in enumerate(frames.group_sizes):
        try:
            frames.check_group(group)
        except UserError as error:
            reason = str(error).removeprefix(f"{path.absolute()} ")
            found.append(f"{path}, rows {start} to {start + size - 1}: {reason}")
        start += size
    return found


def _agree(stored: ActionStatistics, found: ActionStatistics) -> bool:
    if stored.num_actions != found.num_actions:
        return False
    pairs = zip(stored.model_dump(exclude={"num_actions"}).values(), found.model_dump(exclude={"num_actions"}).values())
    return all(len(a) == len(b) and np.allclose(a, b, STATISTICS_TOLERANCE, STATISTICS_TOLERANCE) for a, b in pairs)
