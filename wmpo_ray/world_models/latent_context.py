"""What a learned world model continues from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentContext:
    """State between chunks: the newest c latents [B, C, c, h, w], the frames imagined so far, the instructions [B]."""

    latents: Tensor
    num_frames: int
    instructions: tuple[str, ...]

    def rows(self, rows: np.ndarray) -> LatentContext:
        """That of the trajectories `rows` [m], which may occur more than once."""
        index = torch.from_numpy(rows).to(self.latents.device)
        return LatentContext(self.latents[index], self.num_frames, tuple(self.instructions[i] for i in rows.tolist()))

    def with_rows(self, rows: np.ndarray, part: LatentContext) -> LatentContext:
        """This one with its trajectories `rows` [m], each at most once, as in `part`; the others stay as they are."""
        index = torch.from_numpy(rows).to(self.latents.device)
        latents = self.latents.index_copy(0, index, part.latents)
        return replace(self, latents=latents, num_frames=part.num_frames)
