"""The frames of an episode as compressed blocks, each of which is decoded alone.

Neighbouring frames look alike, so a block of several takes little more room than one frame, and a window of a few frames
costs the decoding of one or two blocks instead of the whole episode. Blocks are frames of Zstandard, one after the other:
together they are a stream that any reader of it decodes at once.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa

BLOCK_FRAMES = 16
# A negative level writes pixels that repeat nowhere as they are: twice as fast to read, for a tenth more bytes.
CODEC = pa.Codec("zstd", compression_level=-3)
BLOCK_OVERHEAD = 512  # bytes that a block may take beyond those of its frames, if they do not compress


def num_blocks(num_frames: np.ndarray | int, block_frames: int) -> np.ndarray | int:
    """Blocks of so many frames; the last one may hold fewer."""
    return -(-num_frames // block_frames)


def encode(video: np.ndarray, block_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(blocks of video [n, H, W, 3] uint8 one after the other [bytes] uint8, the end of each among them [blocks] int64)."""
    video = np.ascontiguousarray(video)
    parts = [CODEC.compress(video[i : i + block_frames].reshape(-1)) for i in range(0, len(video), block_frames)]
    ends = np.cumsum([len(part) for part in parts], dtype="<i8")
    return np.concatenate([np.frombuffer(part, np.uint8) for part in parts]), ends


def decode(block: np.ndarray | bytes, num_frames: int, frame_shape: tuple[int, int, int]) -> np.ndarray:
    """The frames [num_frames, H, W, 3] uint8 of a block. Raises OSError if it holds another number of bytes."""
    num_bytes = num_frames * math.prod(frame_shape)
    content = CODEC.decompress(block, num_bytes)
    if content.size != num_bytes:
        raise OSError(f"a block of frames holds {content.size} bytes instead of {num_bytes}")
    return np.frombuffer(content, np.uint8).reshape(num_frames, *frame_shape)


def are_ends(ends: np.ndarray, num_bytes: int) -> bool:
    """Whether ends [blocks] divide a value of `num_bytes` into blocks that are not empty."""
    return len(ends) > 0 and ends[0] > 0 and bool((np.diff(ends) > 0).all()) and int(ends[-1]) == num_bytes


def decode_all(value: np.ndarray, ends: np.ndarray, out: np.ndarray, block_frames: int) -> None:
    """Fill out [n, H, W, 3] from all blocks of an episode. Raises OSError where one is damaged."""
    for number, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        frames = out[number * block_frames : (number + 1) * block_frames]
        frames[:] = decode(value[start:end], len(frames), out.shape[1:])
