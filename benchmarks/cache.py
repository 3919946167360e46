"""What the conditioning cache saves: time per chunk against the uncached path, in one run.

    python -m benchmarks.cache

Layers of the published size (width 1152, 16 heads, 256 patches a frame, c = 4, K = 8), few of them. The uncached path
runs the whole clip in every denoising step; the cached path runs the conditioning frames once per chunk. Counting
frames, the ratio is (c + n K) / (n (c + K)) for n steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.results_file import write_results
from wmpo_ray.world_models.denoiser import TIME_SCALE
from wmpo_ray.world_models.stdit import STDiT

CONTEXT_FRAMES = 4
CHUNK_LENGTH = 8
LATENT = (4, 32, 32)  # channels, height, width of a 256x256 frame behind an 8x autoencoder
FRAME_SIZE = (256.0, 256.0)


class Chunk(NamedTuple):
    context: Tensor  # [B, C, c, H, W]
    noise: Tensor  # [B, C, K, H, W]
    actions: Tensor  # [B, K, 7]


def make_chunk(batch: int, device: str) -> Chunk:
    generator = torch.Generator().manual_seed(0)
    channels, height, width = LATENT
    latents = torch.randn(batch, channels, CONTEXT_FRAMES + CHUNK_LENGTH, height, width, generator=generator)
    actions = torch.rand(batch, CHUNK_LENGTH, 7, generator=generator) * 2 - 1
    latents, actions = latents.to(device), actions.to(device)
    return Chunk(latents[:, :, :CONTEXT_FRAMES], latents[:, :, CONTEXT_FRAMES:], actions)


@torch.inference_mode()
def imagine_uncached(network: STDiT, chunk: Chunk, num_steps: int) -> Iterator[Tensor]:
    """The whole clip in every step; yields the latents [B, C, K, H, W] after each."""
    x = chunk.noise
    batch, channels = x.shape[:2]
    is_denoised = torch.arange(CONTEXT_FRAMES + CHUNK_LENGTH, device=x.device)[None] >= CONTEXT_FRAMES
    x_mask = is_denoised.expand(batch, -1)
    for step in range(num_steps):
        t = torch.full((batch,), 1 - step / num_steps, device=x.device)
        clip = torch.cat([chunk.context, x], 2)
        output = network(clip, t * TIME_SCALE, chunk.actions, x_mask, *FRAME_SIZE)
        x = x + output[:, :channels, CONTEXT_FRAMES:] / num_steps
        yield x


@torch.inference_mode()
def imagine_cached(network: STDiT, chunk: Chunk, num_steps: int) -> Iterator[Tensor]:
    """The conditioning frames once, in the first step, then the denoised frames only; yields like the other path."""
    x = chunk.noise
    batch, channels = x.shape[:2]
    cache = network.encode_conditioning(chunk.context, *FRAME_SIZE)
    for step in range(num_steps):
        t = torch.full((batch,), 1 - step / num_steps, device=x.device)
        output = network.forward_cached(x, t * TIME_SCALE, chunk.actions, cache, *FRAME_SIZE)
        x = x + output[:, :channels] / num_steps
        yield x


class Timing(NamedTuple):
    """Seconds [repetitions, 2] per chunk of (cached, uncached), and the largest difference of their latents."""

    wall: np.ndarray
    cpu: np.ndarray
    difference: float


def measure(network: STDiT, chunk: Chunk, num_steps: int, repetitions: int) -> Timing:
    """Time both paths step by step in turn, so that a change of the machine's load meets both alike."""
    wall, cpu = np.zeros((2, repetitions, 2))
    latents: list[Tensor] = [chunk.noise, chunk.noise]
    for repetition in range(-1, repetitions):  # the first one warms up, with a single step
        count = num_steps if repetition >= 0 else 1
        paths = [imagine_cached(network, chunk, count), imagine_uncached(network, chunk, count)]
        for step in range(count):
            for i in (0, 1) if step % 2 == 0 else (1, 0):
                _synchronize(chunk.noise)
                started = time.perf_counter(), time.process_time()
                latents[i] = next(paths[i])
                _synchronize(chunk.noise)
                if repetition >= 0:
                    wall[repetition, i] += time.perf_counter() - started[0]
                    cpu[repetition, i] += time.process_time() - started[1]
    return Timing(wall, cpu, float((latents[0] - latents[1]).abs().max()))


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def ratio_figure(seconds: np.ndarray, unit: str, num_resamples: int = 2000) -> dict[str, Any]:
    """Median ratio of the pairs, with a 95% bootstrap interval over repetitions."""
    ratios = seconds[:, 0] / seconds[:, 1]
    drawn = np.random.default_rng(0).integers(0, len(ratios), (num_resamples, len(ratios)))
    interval = np.percentile(np.median(ratios[drawn], 1), [2.5, 97.5])
    return {"value": float(np.median(ratios)), "unit": unit, "interval": interval.tolist()}


def figures_of(timing: Timing, num_steps: int, on_cpu: bool) -> dict[str, dict[str, Any]]:
    wall, frames = timing.wall, num_steps * (CONTEXT_FRAMES + CHUNK_LENGTH)
    figures = {
        "cache_time_ratio": ratio_figure(wall, "cached / uncached, wall clock, median"),
        "ratio_of_minima": {"value": float(wall[:, 0].min() / wall[:, 1].min()), "unit": "cached / uncached"},
        "ratio_by_arithmetic": {
            "value": (CONTEXT_FRAMES + num_steps * CHUNK_LENGTH) / frames,
            "unit": f"frames, {num_steps} steps",
        },
        "difference": {"value": timing.difference, "unit": "max abs, latents after the last step"},
    }
    if on_cpu:
        # Processor time does not count what other programs take.
        figures["cpu_time_ratio"] = ratio_figure(timing.cpu, "cached / uncached, processor time, median")
    for i, path in enumerate(("cached", "uncached")):
        figures[f"{path}_min"] = {"value": float(wall[:, i].min()), "unit": "s per chunk"}
        figures[f"{path}_median"] = {"value": float(np.median(wall[:, i])), "unit": "s per chunk"}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--depth", type=int, default=2, help="pairs of a spatial and a temporal block")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps per chunk (published: 30)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = STDiT(depth=args.depth).to(args.device).eval()
    if args.dtype == "bfloat16":
        network = network.bfloat16()
    timing = measure(network, make_chunk(args.batch, args.device), args.steps, args.repetitions)
    figures = figures_of(timing, args.steps, on_cpu=args.device == "cpu")
    path = write_results("cache", figures, " ".join(["python -m benchmarks.cache", *sys.argv[1:]]))
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:.4g} {figure['unit']} {figure.get('interval', '')}")
    print(path)


if __name__ == "__main__":
    main()
