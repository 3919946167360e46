"""Image preprocessing against its fixtures, a stage at a time and as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import load_npz
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.policies.openvla.images import (
    SIGLIP_MEAN,
    SIGLIP_STD,
    ImageProcessor,
    centre_crop,
    lanczos_resize,
)
from wmpo_ray.policies.openvla.jpeg import jpeg_round_trip

EXACT, ONE_STEP, NORMALIZED = 0.0, 1.0, 1e-6
MAX_PIXEL_BYTES = 2**26
# The published processor files hold the exact ImageNet constants, or those after a cast to bfloat16.
DINO = {
    "exact": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "bf16": ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
}


def check(folder: Path) -> list[ParityCase]:
    """Every image and stage of the folder. Raises UserError for files that are missing or damaged."""
    names = sorted(path.name.partition("_")[0] for path in folder.glob("img*_input_*.png"))
    if not names:
        raise UserError(f"{folder} holds no img*_input_*.png")
    return [case for name in names for case in _check_image(folder, name)]


def _check_image(folder: Path, name: str) -> list[ParityCase]:
    frame, jpeg, resized, cropped, direct = (
        _read(folder, f"{name}_{stage}_*.png")
        for stage in ("input", "after_jpeg", "after_lanczos", "after_crop", "simpath_crop")
    )
    size = (cropped.shape[1], cropped.shape[2])
    case = f"image_preproc/{name}"
    cases = [
        ParityCase(case, "after_jpeg", _error(jpeg_round_trip(frame), jpeg), EXACT),
        ParityCase(case, "after_lanczos", _error(lanczos_resize(jpeg, size), resized), ONE_STEP),
        ParityCase(case, "after_crop", _error(centre_crop(resized, size), cropped), EXACT),
        ParityCase(case, "simpath_crop", _error(ImageProcessor(size, steps="simulator").prepare(frame), direct), EXACT),
        ParityCase(case, "all_stages", _error(ImageProcessor(size, steps="rollout").prepare(frame), cropped), ONE_STEP),
    ]
    archive = folder / f"{name}_pixel_values.npz"
    return cases + (_check_pixels(archive, case, cropped) if archive.exists() else [])


def _check_pixels(archive: Path, case: str, images: Tensor) -> list[ParityCase]:
    names = {kind: f"pixel_values_{kind}_consts" for kind in DINO}
    arrays = load_npz(archive, list(names.values()), MAX_PIXEL_BYTES)
    cases = []
    for kind, name in names.items():
        mean, std = DINO[kind]
        processor = ImageProcessor((images.shape[1], images.shape[2]), (mean, SIGLIP_MEAN), (std, SIGLIP_STD))
        error = _error(processor.normalize(images)[0], torch.from_numpy(arrays[name]))
        cases.append(ParityCase(case, name, error, NORMALIZED))
    return cases


def _read(folder: Path, pattern: str) -> Tensor:
    """The one image of that name, [1, H, W, 3] uint8."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} files {pattern} instead of 1")
    try:
        with Image.open(found[0], formats=["PNG"]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))[None]
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{found[0]} is damaged: {error}") from error


def _error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in steps of a pixel value; infinite for another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max())
