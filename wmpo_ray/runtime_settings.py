"""Settings that every process of a run shares, so that the same request gives the same bits everywhere."""

from __future__ import annotations

import os

import torch
from transformers.utils import logging as transformers_logging


def configure_process(num_threads: int) -> None:
    """Fix the thread count, and with it the order of sums; keep model loaders from drawing progress bars.

    Medium matrix precision is what bfloat16 units give anyway, and is several times faster on CPUs that have them.
    """
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("medium")
    transformers_logging.disable_progress_bar()
    # Read when diffusers is first imported; importing it here would cost every process a second and a half.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
