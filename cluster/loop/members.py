"""Members of groups that several requests roll out: collected until the group is whole, and judged then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.loop.ledger import FILE_NAME, Key
from cluster.runtimes.runtime import Ref
from wmpo_ray.core.types import Group, GroupRequest, Piece, Scores, Stored
from wmpo_ray.core.untrusted import inside


@dataclass(frozen=True)
class Handle:
    """Location of trajectories: in the object store while the actor that made them lives, and on disk."""

    ref: Ref | None
    path: str
    sha256: str


class ScoredMembers(NamedTuple):
    """Some members of a group, with their outcomes, each [last - first]."""

    members: tuple[int, int]  # [first, last)
    success: np.ndarray  # bool
    finish_step: np.ndarray  # int64
    num_refuted: int
    known: np.ndarray | None  # bool; None: all are known
    stored: tuple[Stored, ...]  # under a `Handle` each

    @classmethod
    def of(cls, piece: Piece, scores: Scores, trajectories: Handle) -> ScoredMembers:
        """Those of a piece of a request, from the scores of the whole request."""
        rows = slice(*piece.rows)
        return cls(
            piece.members,
            scores.success[rows],
            scores.finish_step[rows],
            int(scores.refuted[rows].sum()) if scores.refuted is not None else 0,
            scores.known[rows] if scores.known is not None else None,
            (Stored(trajectories, piece.rows),),
        )

    @property
    def handles(self) -> list[Handle]:
        return [_handle(part) for part in self.stored]

    @property
    def facts(self) -> dict[str, Any]:
        """What the ledger keeps of them; `read` is its counterpart."""
        return {
            "members": list(self.members),
            "success": self.success.astype(int).tolist(),
            "finish": self.finish_step.tolist(),
            "refuted": self.num_refuted,
            **({} if self.known is None else {"known": self.known.astype(int).tolist()}),
            "files": [[Path(_handle(part).path).name, _handle(part).sha256, *part.rows] for part in self.stored],
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any], folder: Path) -> ScoredMembers:
        """From facts of the ledger; the files are in `folder`. Raises UserError for a name that leads out of it."""
        success = np.array(facts["success"], bool)
        files = facts["files"] if "files" in facts else [[facts["file"], facts["sha256"], *facts["rows"]]]
        first, last = facts.get("members", (0, len(success)))
        return cls(
            (first, last),
            success,
            np.array(facts["finish"], np.int64),
            facts["refuted"],
            np.array(facts["known"], bool) if "known" in facts else None,
            tuple(
                Stored(Handle(None, str(inside(folder, name, FILE_NAME)), sha256), (begin, end))
                for name, sha256, begin, end in files
            ),
        )


class Members:
    """What there is of groups that are not whole yet. Every member is taken once."""

    def __init__(self) -> None:
        self._found: dict[Key, dict[int, ScoredMembers]] = {}  # by their first member

    def holds(self, piece: Piece) -> bool:
        return piece.members[0] in self._found.get(piece.group.key, {})

    def take(self, request: GroupRequest, part: ScoredMembers) -> ScoredMembers | None:
        """Keep members that are not held yet; returns all of the group once they are there, and forgets them."""
        found = self._found.setdefault(request.key, {})
        found[part.members[0]] = part
        if sum(len(one.success) for one in found.values()) < request.group_size:
            return None
        return _joined([found[first] for first in sorted(self._found.pop(request.key))])

    def forget(self, before_update: int) -> None:
        """Drop what belongs to groups of earlier updates, which were not needed."""
        for key in [key for key in self._found if key[0] < before_update]:
            del self._found[key]


def as_group(request: GroupRequest, version: int, whole: ScoredMembers) -> Group:
    return Group(request, version, whole.success, whole.finish_step, whole.num_refuted, whole.stored, whole.known)


def handles_of(group: Group) -> list[tuple[Handle, tuple[int, int]]]:
    """Where the members of a group are, in order: (handle, rows)."""
    return [(_handle(part), part.rows) for part in group.pieces]


def _joined(parts: Sequence[ScoredMembers]) -> ScoredMembers:
    known = [part.known for part in parts if part.known is not None]
    return ScoredMembers(
        (parts[0].members[0], parts[-1].members[1]),
        np.concatenate([part.success for part in parts]),
        np.concatenate([part.finish_step for part in parts]),
        sum(part.num_refuted for part in parts),
        np.concatenate(known) if known else None,
        tuple(stored for part in parts for stored in part.stored),
    )


def _handle(part: Stored) -> Handle:
    assert isinstance(part.trajectories, Handle)
    return part.trajectories
