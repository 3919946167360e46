"""Images on the wire: raw, PNG or JPEG, with every size checked before memory is taken for it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import Refusal, bad

MAX_SIDE = 4096  # pixels
MAX_PIXELS = 2**22  # of one image: 12 MiB
MAX_CAMERAS = 8
MAX_NAME = 64  # characters
FORMATS = {pb.PNG: "PNG", pb.JPEG: "JPEG"}


def encode_image(camera: str, frame: np.ndarray, image_format: int = pb.RAW, quality: int = 95) -> Any:
    """An Image of a frame [H, W, 3] uint8. Raises ValueError for another shape or dtype."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"camera {camera}: a frame is [H, W, 3] uint8, this is {frame.dtype} {list(frame.shape)}")
    height, width = frame.shape[:2]
    if image_format == pb.RAW:
        data = np.ascontiguousarray(frame).tobytes()
    else:
        from PIL import Image  # 30 ms that raw images do not need

        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, FORMATS[image_format], quality=quality, compress_level=1)
        data = buffer.getvalue()
    return pb.Image(camera=camera, format=image_format, height=height, width=width, data=data)


def decode_image(image: Any) -> np.ndarray:
    """The frame [H, W, 3] uint8 of an Image. Raises Refusal for anything that is not what it says."""
    check_image(image)
    shape = (image.height, image.width, 3)
    if image.format == pb.RAW:
        return np.frombuffer(image.data, np.uint8).reshape(shape)
    return _decoded(image, shape)


def check_image(image: Any) -> None:
    """Refuse sizes and names that are absurd; reads no pixel."""
    height, width = image.height, image.width
    if not 1 <= len(image.camera) <= MAX_NAME:
        raise bad(f"a camera's name has {len(image.camera)} characters; it has 1 to {MAX_NAME}")
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise bad(f"an image of {height} x {width} pixels; {MAX_SIDE} a side and {MAX_PIXELS} altogether are the most")
    if image.format == pb.RAW and len(image.data) != 3 * height * width:
        raise bad(f"a raw image of {height} x {width} has {3 * height * width} bytes, this one {len(image.data)}")
    if image.format != pb.RAW and image.format not in FORMATS:
        raise bad(f"image format {image.format}: known are RAW, PNG and JPEG")


def _decoded(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    name = FORMATS[image.format]
    try:
        with Image.open(io.BytesIO(image.data), formats=(name,)) as opened:
            if opened.size != (shape[1], shape[0]) or opened.mode != "RGB":  # of the header: no pixel is decoded yet
                found = f"{opened.size[1]} x {opened.size[0]} {opened.mode}"
                raise bad(f"a {name} that is {found}; {shape[0]} x {shape[1]} RGB was announced")
            frame = np.asarray(opened)
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001  a decoder may raise anything over bytes that somebody made up
        raise bad(f"no {name} image: {type(error).__name__}") from None
    if frame.shape != shape or frame.dtype != np.uint8:
        raise bad(f"a {name} that decodes to {frame.dtype} {list(frame.shape)}")
    return frame


def image_bytes(images: Any) -> int:
    """Bytes of all images of an observation, decoded; checks each. Raises Refusal."""
    if not 1 <= len(images) <= MAX_CAMERAS:
        raise bad(f"{len(images)} images; an observation has 1 to {MAX_CAMERAS}")
    names = [image.camera for image in images]
    if len(set(names)) != len(names):
        raise bad("two images of one camera")
    for image in images:
        check_image(image)
    return sum(3 * image.height * image.width for image in images)
