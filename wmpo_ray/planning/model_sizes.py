"""Sizes of the published models, for plans and benchmarks that have no checkpoint at hand."""

from __future__ import annotations

from typing import Any

# STDiT3-XL/2 has its sizes as the defaults of `STDiT`, OpenVLA-7B as those of `OpenVLAConfig`.
SDXL_AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
VIDEOMAE_BASE: dict[str, Any] = {"image_size": 224, "num_frames": 8, "use_mean_pooling": True}
CONTEXT_FRAMES = 4
PROMPT_LENGTH = 32  # tokens of "In: What action should the robot take to ...?\nOut:" with a dozen words of instruction
