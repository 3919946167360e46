"""Actions as the last tokens of the vocabulary, and their scale in a data set."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown

SPAN_EPS = 1e-8  # the data set's own normalisation divides by q99 - q01 + this


class ActionTokenizer:
    """`num_bins` edges over [-1, 1]; an action's token id counts down from the end of a vocabulary of `vocab_size`.

    There are one interval fewer than ids: the two lowest ids decode to the same value.
    """

    def __init__(self, vocab_size: int, num_bins: int = 256):
        self.vocab_size, self.num_bins = vocab_size, num_bins
        edges = np.linspace(-1.0, 1.0, num_bins)
        self._edges, self._centres = torch.from_numpy(edges), torch.from_numpy((edges[:-1] + edges[1:]) / 2)

    def encode(self, actions: Tensor) -> Tensor:
        """Actions (clipped to [-1, 1]) -> ids of the same shape, int64."""
        clipped = actions.double().clamp(-1, 1)
        return self.vocab_size - torch.bucketize(clipped, self._edges.to(actions.device), right=True)

    def decode(self, ids: Tensor) -> Tensor:
        """Ids -> centres of their intervals, float64; an id outside of the range gives the nearest centre."""
        indices = (self.vocab_size - ids - 1).clamp(0, self.num_bins - 2)
        return self._centres.to(ids.device)[indices]


class _Action(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    q01: Annotated[list[float], Field(min_length=1)]
    q99: Annotated[list[float], Field(min_length=1)]
    mask: list[bool] | None = None
    min: list[float] | None = None
    max: list[float] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        """Raises ValueError for statistics that no data set has."""
        for low, high in (("q01", "q99"), ("min", "max")):
            lows, highs = getattr(self, low) or [], getattr(self, high) or []
            for dimension, (least, most) in enumerate(zip(lows, highs, strict=False)):
                if least > most:
                    raise ValueError(f"dimension {dimension} has {low} = {least:g} above {high} = {most:g}")
        if negative := [value for value in self.std or () if value < 0]:
            raise ValueError(f"std = {negative[0]:g} is negative")
        lengths = {name: len(values) for name, values in self if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"numbers of dimensions differ: {', '.join(f'{k} has {n}' for k, n in lengths.items())}")
        return self


class ActionStatistics:
    """The scale of the actions of one data set, from a `dataset_statistics.json`."""

    def __init__(self, q01: list[float], q99: list[float], mask: list[bool] | None = None):
        self.q01, self.q99 = (torch.tensor(values, dtype=torch.float64) for values in (q01, q99))
        self.mask = torch.tensor(mask if mask is not None else [True] * len(q01))

    @classmethod
    def find(cls, statistics: Any, key: str | None, action_dim: int | None, where: str) -> ActionStatistics:
        """Those of the data set `key`, or of the only one; `action_dim` None: of any number of dimensions.

        Raises UserError, which names the data sets there are.
        """
        if not isinstance(statistics, dict) or not statistics:
            raise UserError(f"{where} has no action statistics; actions of a data set need its dataset_statistics.json")
        if key is None and len(statistics) > 1:
            raise UserError(f"{where} has statistics of {sorted(statistics)}: set unnorm_key to one of them")
        key = next(iter(statistics)) if key is None else key
        if key not in statistics:
            raise UserError(f"unnorm_key={shown(key)} is not in {where}, which has {sorted(statistics)}")
        action = _read(statistics[key], f"{where}, data set {shown(key)}")
        if action_dim is not None and len(action.q01) != action_dim:
            raise UserError(
                f"{where}, data set {shown(key)}: q01 and q99 have {len(action.q01)} values and the policy's "
                f"action_dim is {action_dim}; set action_dim"
            )
        return cls(action.q01, action.q99, action.mask)

    def unnormalize(self, actions: Tensor) -> Tensor:
        """Normalised actions [..., D] in [-1, 1] -> the data set's units [..., D] float64."""
        q01, q99, mask = (x.to(actions.device) for x in (self.q01, self.q99, self.mask))
        actions = actions.double()
        return torch.where(mask, 0.5 * (actions + 1) * (q99 - q01 + SPAN_EPS) + q01, actions)

    def normalize(self, actions: Tensor) -> Tensor:
        """The inverse of `unnormalize`, clipped to [-1, 1] where the scale applies."""
        q01, q99, mask = (x.to(actions.device) for x in (self.q01, self.q99, self.mask))
        actions = actions.double()
        return torch.where(mask, (2 * (actions - q01) / (q99 - q01 + SPAN_EPS) - 1).clamp(-1, 1), actions)


def check_statistics(statistics: Any, key: str | None, where: str) -> None:
    """Refuse statistics of the data set `key`, or of the only one, that contradict themselves.

    Nothing is said of a data set that is not there: only those that ask for one need it.
    """
    if not isinstance(statistics, dict):
        raise UserError(f"{where} is damaged: it holds no data sets")
    if key is None and len(statistics) == 1:
        key = next(iter(statistics))
    if key in statistics:
        _read(statistics[key], f"{where}, data set {shown(key)}")


def _read(entry: Any, where: str) -> _Action:
    try:
        return _Action.model_validate(entry.get("action") if isinstance(entry, dict) else entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("action", *first["loc"]))
        value = "" if isinstance(first["input"], dict) else f" = {shown(first['input'])}"
        raise UserError(f"{where}: {place}{value}: {first['msg']}") from None
