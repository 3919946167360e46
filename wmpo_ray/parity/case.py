"""One comparison of a parity check."""

from __future__ import annotations

from typing import NamedTuple


class ParityCase(NamedTuple):
    """How far one tensor of a fixture is from what the public classes compute."""

    case: str
    tensor: str
    max_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for an error that is not a number, too."""
        return self.max_error <= self.tolerance
