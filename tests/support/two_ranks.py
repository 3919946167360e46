"""Trainings as one of two processes that meet over gloo: `python -m tests.support.two_ranks NAME,NAME RANK FOLDER`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from learners.supervised.loop import WorkerShare
from learners.supervised.training_state import TrainingCheckpoints
from tests.support.trainings import TRAININGS, clone_tiny, train_world

SIZE = 2
RESUMED = "resumed"  # the world model's, from a checkpoint in FOLDER/checkpoints
IN_PIECES = "pieces"  # the tiny policy's, a share in two forward passes


def main(name: str, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"{name}.store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=600))
    share = WorkerShare(rank, SIZE, lambda module: DistributedDataParallel(module, find_unused_parameters=True))
    if name == RESUMED:
        weights, metrics = train_world(share, checkpoints=TrainingCheckpoints(folder / "checkpoints"))
    elif name == IN_PIECES:
        weights, metrics = clone_tiny(share, micro_batch_size=2)
    else:
        weights, metrics = TRAININGS[name](share)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / f"{name}-{rank}.safetensors")
    (folder / f"{name}-{rank}.txt").write_text(repr(metrics))
    dist.destroy_process_group()


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        main(name, int(sys.argv[2]), Path(sys.argv[3]))
