"""What a learned world model continues from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentContext:
    """State between chunks: the newest c latents [B, C, c, h, w] and the instructions [B]."""

    latents: Tensor
    instructions: tuple[str, ...]

    def rows(self, rows: np.ndarray) -> LatentContext:
        """That of the trajectories `rows` [m], which may occur more than once."""
        index = torch.from_numpy(rows).to(self.latents.device)
        return LatentContext(self.latents[index], tuple(self.instructions[i] for i in rows.tolist()))

    def with_rows(self, rows: np.ndarray, part: LatentContext) -> LatentContext:
        """This one with its trajectories `rows` [m], each at most once, as in `part`; the others stay as they are."""
        index = torch.from_numpy(rows).to(self.latents.device)
        texts = list(self.instructions)
        for row, text in zip(rows.tolist(), part.instructions, strict=True):
            texts[row] = text
        return LatentContext(self.latents.index_copy(0, index, part.latents), tuple(texts))
