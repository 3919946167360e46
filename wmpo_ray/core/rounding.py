"""Elementary functions that give the same bits on every processor.

The vectorised kernels of torch and numpy are not correctly rounded, and which one runs depends on the processor: even
the square root of 0.9 differs in its last bit. Here a function is taken in float64 and rounded once. An error of a few
units in the last place of float64 changes a rounded float32 about once in 10^8 values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor


def rounded(function: Callable[[float], float], values: np.ndarray) -> np.ndarray:
    """A scalar function of `math` at every value, rounded to float32 once. For tables."""
    results = [function(value) for value in values.ravel().tolist()]
    return np.array(results, np.float32).reshape(values.shape)


def sine(angles: Tensor) -> Tensor:
    """Sine in the dtype of `angles`, on their device. For what depends on data, where a table cannot serve."""
    return angles.double().sin().to(angles.dtype)


def cosine(angles: Tensor) -> Tensor:
    """Cosine in the dtype of `angles`, on their device."""
    return angles.double().cos().to(angles.dtype)
