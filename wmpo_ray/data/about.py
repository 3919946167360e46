"""What a trajectory file says of its episodes beside their shapes: where they come from and how their actions spread.

It stands in the file's own metadata under `wmpo_ray.about`, as JSON, written after the last row. Files without it, of
earlier versions, open as they did, and earlier versions open files that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmpo_ray.core.errors import UserError
from wmpo_ray.data.store_format import opened

ABOUT_KEY = b"wmpo_ray.about"
MAX_ABOUT_BYTES = 2**20
QUANTILES = (0.01, 0.99)


class Provenance(BaseModel):
    """Where episodes come from; what is not known stays empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    origin: Literal["real", "imagined", "unknown"] = "unknown"  # made in an environment, or by a world model
    made_by: str = ""  # "expert", "policy", or the file that they were imported from
    policy_sha256: str = ""  # of the folder of the policy that acted
    policy_version: Annotated[int, Field(ge=0)] | None = None  # updates of that policy
    environment: dict[str, Any] = {}  # its settings
    versions: dict[str, str] = {}  # of the simulator and of what it runs on
    notes: tuple[str, ...] = ()  # what was assumed or left out when they were imported


class ActionStatistics(BaseModel):
    """Of the actions that were executed, one number for each of D dimensions; empty lists where there was none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    num_actions: Annotated[int, Field(ge=0)]  # counted; those with a value that is not finite are not
    mean: list[float]
    std: list[float]
    q01: list[float]
    q99: list[float]
    min: list[float]
    max: list[float]


class About(BaseModel):
    """The content of the metadata key."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # later versions may say more
    provenance: Provenance | None = None
    statistics: ActionStatistics | None = None


def statistics_of(executed: Sequence[np.ndarray]) -> ActionStatistics:
    """Statistics of the executed actions [n, D] float32 of each episode, in double precision."""
    actions = np.concatenate([np.empty((0, executed[0].shape[1] if executed else 0)), *executed]).astype(np.float64)
    actions = actions[np.isfinite(actions).all(1)]
    if not len(actions):
        return ActionStatistics(num_actions=0, mean=[], std=[], q01=[], q99=[], min=[], max=[])
    low, high = np.quantile(actions, QUANTILES, axis=0)
    values = {"mean": actions.mean(0), "std": actions.std(0), "q01": low, "q99": high}
    values |= {"min": actions.min(0), "max": actions.max(0)}
    return ActionStatistics(num_actions=len(actions), **{name: each.tolist() for name, each in values.items()})


def about_of(path: Path) -> About:
    """What a trajectory file says of itself. Raises UserError for a file that is damaged or none of ours."""
    with opened(path) as (file, _):
        return read_about(path, file)


def read_about(path: Path, file: pq.ParquetFile) -> About:
    """The same of an open file; empty for a file without it."""
    text = (file.metadata.metadata or {}).get(ABOUT_KEY)
    if text is None:
        return About()
    if len(text) > MAX_ABOUT_BYTES:
        raise UserError(f"{path} is damaged: {len(text)} bytes of metadata, more than the {MAX_ABOUT_BYTES} of any")
    try:
        return About.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} is damaged: what it says of its episodes is not valid: {where}: {first['msg']}"
        ) from None
