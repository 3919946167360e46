"""How true the demo's world model stays with other solvers and other numbers of steps.

    python -m benchmarks.sampler_steps [--run DIR]

Held-out trajectories are replayed in the aligned world model of a run once for each solver and number of steps, always
with the same noise. Told of each: on how many trajectories the reward model gives the real label (and on how many the one
that it gives after 30 Euler steps), how far the latents of one chunk are from those of 30 Euler steps, the signal-to-noise
ratio of the frames to the real ones, and the time for an imagined frame.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.prepared_run import make_run
from benchmarks.results_file import write_results
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import RewardModel
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import keyed_noise, seed_for
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.data.store import load_episodes
from wmpo_ray.registry import load_reward_model, load_world_model
from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.formats import compact, percent
from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.svg import drawing
from wmpo_ray.reward_models.decisions import score_videos
from wmpo_ray.rollout.fidelity import psnr_per_frame, replay_videos, starts_of
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import SamplerConfig, Solver

ROOT = Path(__file__).parents[1]
TIMED, TIMINGS = 16, 4  # trajectories, repetitions
STEPS = (1, 2, 3, 5, 8, 10, 15, 30)
REFERENCE = SamplerConfig(solver="euler", num_steps=30)
TONES = {"euler": "real", "unipc": "imagined"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#888}.gridline{stroke:#8884}.axis{stroke:#888}"
    ".line{fill:none;stroke:var(--tone);stroke-width:2.2}.marker{fill:var(--tone)}.leader{fill:none;stroke:#8886}"
    ".tone-real{--tone:#2aa198}.tone-imagined{--tone:#b4589c}"
)


class Row(NamedTuple):
    """One solver with one number of steps. `right` and `same`: labels as in reality and as after 30 Euler steps."""

    sampler: SamplerConfig
    num: int
    right: int
    same: int
    latent_error: float  # root mean square, to 30 Euler steps
    psnr_db: float
    seconds_per_frame: float


class Study:
    """Replays the first `num` held-out trajectories of a run."""

    def __init__(self, run: Path, num: int):
        folder = RunFolder(run)
        if not folder.is_done("reward-model"):
            raise UserError(f"{run}: its stage reward-model is not done; leave --run out to make a run")
        config = folder.config
        world = load_world_model(config, str(folder.models / "world-model"))
        if not isinstance(world, DiffusionWorldModel):
            raise UserError(f"{run}: world_model.kind={config.world_model.kind!r} has no sampler; take another run")
        self.world, self.seed, self.min_steps = world, config.seed, config.reward.min_steps
        self.reward: RewardModel = load_reward_model(config, str(folder.models / "reward-model"))
        self.episodes = load_episodes(folder.trajectories / "held-out.parquet").rows(slice(num))

    def rows(self, settings: Sequence[SamplerConfig]) -> list[Row]:
        """One row for each setting; `REFERENCE` must be the first."""
        reference, labels = None, self.episodes.success
        times, rows = self.times(settings), []
        for sampler, seconds in zip(settings, times, strict=True):
            latents, (videos, success) = self._chunk(sampler), self._replay(sampler)
            if reference is None:
                reference, labels = latents, success
            rows.append(
                Row(
                    sampler,
                    len(success),
                    right=int((success == self.episodes.success).sum()),
                    same=int((success == labels).sum()),
                    latent_error=float((latents - reference).square().mean().sqrt()),
                    psnr_db=float(psnr_per_frame(self.episodes.frames, videos, self.episodes.lengths).mean()),
                    seconds_per_frame=seconds,
                )
            )
            print(rows[-1], file=sys.stderr, flush=True)
        return rows

    def times(self, settings: Sequence[SamplerConfig]) -> list[float]:
        """Seconds for an imagined frame, the least of `TIMINGS`; in turn, so that other load meets all alike."""
        starts = starts_of(self.episodes)[:TIMED]
        actions = torch.from_numpy(self.episodes.actions[:TIMED, : self.world.chunk_length])
        least = [float("inf")] * len(settings)
        for _ in range(TIMINGS):
            for i, sampler in enumerate(settings):
                world = self.world.with_sampler(sampler)
                started = self._clock()
                world.step_chunk(world.start(starts)[0], actions, list(range(len(starts))))
                least[i] = min(least[i], (self._clock() - started) / (len(starts) * world.chunk_length))
        return least

    def _clock(self) -> float:
        """Processor time does not count what other programs take; a GPU's time is not in it."""
        if self.world.denoiser.network.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _replay(self, sampler: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
        world, episodes = self.world.with_sampler(sampler), self.episodes
        videos = replay_videos(world, starts_of(episodes), episodes.actions, self.seed)
        return videos, score_videos(self.reward, videos, episodes.instructions, self.min_steps).success

    @torch.no_grad()
    def _chunk(self, sampler: SamplerConfig) -> Tensor:
        """Latents of one chunk of each trajectory, from real frames somewhere in its middle."""
        world, episodes = self.world.with_sampler(sampler), self.episodes
        c, k = world.context_frames, world.chunk_length
        starts, actions, seeds = [], [], []
        for i, length in enumerate(episodes.lengths):
            seeds.append(seed_for(self.seed, "sampler-steps", i))
            first = seeds[-1] % max(1, int(length) - k)
            shown = np.arange(first - c + 1, first + 1).clip(0)
            starts.append(StartState(episodes.frames[i, shown], episodes.instructions[i]))
            actions.append(episodes.actions[i, first : first + k])
        context = world.start(starts)[0].latents
        noise = keyed_noise(seeds, (context.shape[1], c + k, *context.shape[3:])).to(context.device)
        conditioning = world.denoiser.condition(context, noise[:, :, :c])
        acted = torch.from_numpy(np.stack(actions)).to(context.device)
        return world.sampler.sample(world.denoiser, noise[:, :, c:], acted, conditioning)


# -- telling -----------------------------------------------------------------------------------------------------


def relative_times(rows: Sequence[Row]) -> list[float]:
    slowest = next(row.seconds_per_frame for row in rows if row.sampler == REFERENCE)
    return [row.seconds_per_frame / slowest for row in rows]


def figures_of(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for row, share in zip(rows, relative_times(rows), strict=True):
        told = {
            "label_agreement": (row.right / row.num, f"of {row.num} held-out labels"),
            "labels_as_30_euler_steps": (row.same / row.num, f"of {row.num} held-out trajectories"),
            "latent_error": (row.latent_error, "rms to 30 Euler steps, one chunk, same noise"),
            "psnr": (row.psnr_db, "dB to the real frames, mean over the video"),
            "time_per_frame": (row.seconds_per_frame, "s"),
            "relative_time": (share, "of 30 Euler steps"),
        }
        name = f"{row.sampler.solver}_{row.sampler.num_steps}"
        figures |= {f"{name}_{key}": {"value": value, "unit": unit} for key, (value, unit) in told.items()}
        figures[f"{name}_label_agreement"]["interval"] = wilson_interval(row.right, row.num)
    return figures


def cells(row: Row, share: float) -> list[str]:
    low, high = wilson_interval(row.right, row.num)
    return [
        row.sampler.solver,
        str(row.sampler.num_steps),
        f"{row.right / row.num:.3f} [{low:.2f}, {high:.2f}]",
        f"{row.same / row.num:.3f}",
        f"{row.latent_error:.4f}",
        f"{row.psnr_db:.1f}",
        f"{share:.3f}",
    ]


def draw(rows: Sequence[Row]) -> str:
    """SVG text: latent error and label agreement over the number of steps, a line for each solver."""

    def chart(title: str, value: Any, y_format: Any, low: float, high: float | None) -> Markup:
        series = []
        for solver, tone in TONES.items():
            mine = [row for row in rows if row.sampler.solver == solver]
            series.append(Series(solver, tone, [(row.sampler.num_steps, value(row)) for row in mine]))
        return line_chart(series, title, f"{title}, by number of steps", y_format, y_low=low, y_high=high)

    charts = [
        chart("latent error to 30 Euler steps", lambda row: row.latent_error, compact, 0.0, None),
        chart("labels as in reality", lambda row: row.right / row.num, lambda y: percent(y, 0), 0.8, 1.0),
    ]
    placed = [tag("svg", one, x=490 * i, y=0, width=480, height=226) for i, one in enumerate(charts)]
    picture = str(drawing(970, 226, "Fidelity against steps", tag("style", STYLE), *placed, kind="samplers"))
    return picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run done up to its reward model (default: one is made)")
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = sorted({*arguments.steps, REFERENCE.num_steps})
    settings = [SamplerConfig(solver=solver, num_steps=n) for solver in get_args(Solver) for n in steps]
    with tempfile.TemporaryDirectory() as temporary:
        study = Study(arguments.run or make_run(Path(temporary) / "run"), arguments.trajectories)
        rows = sorted(
            study.rows(sorted(settings, key=lambda one: one != REFERENCE)), key=lambda row: settings.index(row.sampler)
        )
    table = Table("solver", "steps", "label agreement", "as 30 Euler", "latent error", "PSNR dB", "relative time")
    for row, share in zip(rows, relative_times(rows), strict=True):
        table.add_row(*cells(row, share))
    Console().print(table)
    command = (
        f"python -m benchmarks.sampler_steps --trajectories {arguments.trajectories} --threads {arguments.threads}"
    )
    print(write_results("samplers", figures_of(rows), command))
    (ROOT / "docs" / "samplers.svg").write_text(draw(rows))


if __name__ == "__main__":
    main()
