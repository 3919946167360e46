"""TensorBoard events in the run's folder, one subfolder for each series: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wmpo_ray.core.files import explain_full_disk
from wmpo_ray.runs.trackers.tracker import OPTIMIZE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """Raises ImportError where TensorBoard is not installed, `UserError` on a full disk."""

    name = "tensorboard"

    def __init__(self, folder: Path):
        import torch.utils.tensorboard  # noqa: F401  fail now, not at the first metric

        self.folder = folder / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        with explain_full_disk(self.folder):
            writer = self._writer(series)
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    def restart(self, series: str, after_step: int) -> None:
        """Events of later steps stay in the file and are no longer shown."""
        if writer := self._writers.pop(series, None):
            writer.close()
        self._purge[series] = after_step + 1

    def close(self) -> None:
        writers, self._writers = self._writers, {}
        with explain_full_disk(self.folder):
            for writer in writers.values():
                writer.close()

    def _writer(self, series: str) -> SummaryWriter:
        if series not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.folder if series == OPTIMIZE else self.folder / series
            self._writers[series] = SummaryWriter(str(folder), purge_step=self._purge.get(series))
        return self._writers[series]
