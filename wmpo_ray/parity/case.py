"""One comparison of a tensor of ours with a published one."""

from __future__ import annotations

from typing import NamedTuple


class ParityCase(NamedTuple):
    """`max_error` is the largest absolute difference, or the number of differing decisions; NaN fails."""

    case: str
    tensor: str
    max_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_error <= self.tolerance
