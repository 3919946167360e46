"""Settings that every process of a run shares, so that the same request gives the same bits everywhere."""

from __future__ import annotations

import os

import torch
from transformers.utils import logging as transformers_logging

from wmpo_ray.core.errors import ConfigError


def configure_process(num_threads: int) -> None:
    """Fix the thread count, and with it the order of sums; keep model loaders from drawing progress bars.

    Medium matrix precision is what bfloat16 units give anyway, and is several times faster on CPUs that have them.
    """
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("medium")
    transformers_logging.disable_progress_bar()
    # Read when diffusers is first imported; importing it here would cost every process a second and a half.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def process_device(setting: str = "auto") -> torch.device:
    """Where this process puts its models under `cluster.device`: "auto" is the GPU it was given, else the CPU.

    A process sees the GPUs of its placement only, its share of one being number 0. Raises ConfigError for "cuda" where
    none is seen, and for names of no device.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ConfigError(f'cluster.device="{setting}" is no device; set it to "auto", "cpu" or "cuda"') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f'cluster.device="{setting}": this process sees no GPU; give its role one with placement.*.gpus, or set '
            'cluster.device="auto"'
        )
    return device
