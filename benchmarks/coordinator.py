"""The main loop with up to 256 simulated imagination actors at full-size service times.

The loop, its pools, queue and ledger are the real ones; the actors and the clock are not (cluster/simulation/simulated_runtime.py).

    python -m benchmarks.coordinator [--skip-autoscaling] [--skip-delta | --delta-run RUN]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.coordinator_run import Setup, simulate
from benchmarks.coordinator_scaling import (
    ACTORS,
    Point,
    draw_scaling,
    explain,
    scaling_table,
)
from benchmarks.prepared_run import make_run
from benchmarks.results_file import RESULTS_DIR, write_results

NAME = "coordinator"
BARS = {
    "events_per_s": 1000.0,
    "busy_share_256": 0.02,
    "efficiency_32": 0.80,
    "efficiency_64": 0.70,
    "efficiency_256_learner8": 0.45,
    "efficiency_256_learner16": 0.65,
    "surplus_displacing_share": 0.05,
    "learner_exposed_share": 0.35,
}


# -- scaling -----------------------------------------------------------------------------------------------------

GROUPS = Setup(8, stream=False)  # as it was: a group is the unit of work, and the learner waits for the batch
MEMBERS = Setup(8, trajectories_per_request=1, stream=False)
FILLED = MEMBERS._replace(fill_probability=0.9)
STREAMED = FILLED._replace(stream=True)
SUMMED = STREAMED._replace(groups_per_pass=1)
VARIANTS = {
    "whole groups": GROUPS,
    "a trajectory a request": MEMBERS,
    "and a batch that fills": FILLED,
    "and a learner that does not wait": STREAMED,
    "and 16 GPUs for it": STREAMED._replace(learner_gpus=16),
    "and gradients summed group by group": SUMMED,
    "whole groups, staleness 1": GROUPS._replace(staleness=1, stream=True),
}


def scaling(variant: Setup, actors: Sequence[int] = ACTORS) -> list[Point]:
    quick = variant._replace(updates=3, heartbeat_every_s=60.0)  # heartbeats take none of the actors' time
    outcomes = [simulate(quick._replace(actors=count)) for count in actors]
    first = outcomes[0].update_s * actors[0]
    return [
        Point(count, outcome.update_s, first / (outcome.update_s * count), outcome.surplus_share, outcome.exposed_share)
        for count, outcome in zip(actors, outcomes, strict=True)
    ]


# -- all figures -------------------------------------------------------------------------------------------------


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, list[Point]]]:
    largest, busiest = simulate(STREAMED._replace(actors=256)), simulate(Setup(256, speed=200.0))
    curves = {name: scaling(variant) for name, variant in VARIANTS.items()}
    figures: dict[str, dict[str, Any]] = {
        "events_per_s": {
            "value": round(busiest.num_events / busiest.driver_s, 1),
            "unit": "ledger lines / second of the driver (processor time outside the simulation, and waiting for fsync), "
            "256 actors that are 200 times faster than full-size ones: it has little else to do",
        },
        "busy_share_256": {
            "value": round(largest.driver_s / largest.virtual_s, 5),
            "unit": "seconds of the driver / second of the run, 256 actors, a trajectory a request",
        },
    }
    for name, points in curves.items():
        figures[f"scaling, {name}"] = {
            "value": [round(point.efficiency, 3) for point in points],
            "unit": f"speed-up over 8 actors / ideal, with {ACTORS} actors",
        }
        figures[f"seconds of an update, {name}"] = {"value": [round(p.update_s, 1) for p in points], "unit": "s"}
    return figures | efficiencies(curves) | surplus_figures() | exposed_figures(curves), curves


def efficiencies(curves: dict[str, list[Point]]) -> dict[str, dict[str, Any]]:
    """At staleness 0, each over eight actors of the same variant."""
    streamed = {point.actors: point for point in curves["and a learner that does not wait"]}
    more = {point.actors: point for point in curves["and 16 GPUs for it"]}
    unit = "speed-up over 8 actors / ideal, keep rate 0.5, staleness 0"
    found = {f"efficiency_{count}": (streamed[count], 8) for count in (32, 64)}
    found |= {"efficiency_256_learner8": (streamed[256], 8), "efficiency_256_learner16": (more[256], 16)}
    found["efficiency_256_learner8, gradients summed"] = (curves["and gradients summed group by group"][-1], 8)
    before = curves["whole groups"][-1].update_s / streamed[256].update_s
    return {
        name: {"value": round(point.efficiency, 3), "unit": f"{unit}, learner on {gpus} GPUs"}
        for name, (point, gpus) in found.items()
    } | {"speedup_256_over_whole_groups": {"value": round(before, 2), "unit": "times faster an update, 256 actors"}}


def surplus_figures() -> dict[str, dict[str, Any]]:
    """Imagined in vain: while somebody who was needed waited for the actor, and in all."""
    runs = {
        (actors, keep): simulate(STREAMED._replace(actors=actors, keep_rate=keep, updates=3, heartbeat_every_s=60.0))
        for actors in (64, 256)
        for keep in (0.7, 0.5, 0.3)
    }
    figures = {
        "surplus_displacing_share": {
            "value": round(max(run.displacing_share for run in runs.values()), 4),
            "unit": "of the actors' seconds, those for surplus while a needed group waited for an actor; the largest with 64 "
            "and 256 actors at keep rates 0.7, 0.5, 0.3",
        }
    }
    for (actors, keep), run in runs.items():
        figures[f"surplus_share, {actors} actors, keep {keep}"] = {
            "value": round(run.surplus_share, 4),
            "unit": "of the groups begun, also on actors that would have idled",
        }
    return figures


def exposed_figures(curves: dict[str, list[Point]]) -> dict[str, dict[str, Any]]:
    """The learner's time that imagination does not hide; all of it, where it waits for whole batches."""
    waiting = curves["and a batch that fills"][3].exposed_share
    unit = "of the learner's seconds (8 GPUs), those after its batch is full"
    figures: dict[str, dict[str, Any]] = {
        "learner_exposed_share": {
            "value": round(max(point.exposed_share for point in curves["and gradients summed group by group"]), 3),
            "unit": f"{unit}; the largest with {ACTORS} actors; grpo.groups_per_pass = 1",
        },
        "learner_exposed_share_whole_batches": {"value": round(waiting, 3), "unit": f"{unit}; 64 actors"},
    }
    for name in ("and a learner that does not wait", "and 16 GPUs for it", "and gradients summed group by group"):
        shares = [round(point.exposed_share, 3) for point in curves[name]]
        figures[f"learner_exposed_share, {name}"] = {"value": shares, "unit": f"{unit}; with {ACTORS} actors"}
    return figures


def other_figures(skip_autoscaling: bool, skip_delta: bool, delta_run: Path | None) -> dict[str, dict[str, Any]]:
    """Figures of other benchmarks that stand in the same file; those not measured now are kept as they are."""
    path = RESULTS_DIR / f"{NAME}.json"
    known = json.loads(path.read_text())["figures"] if path.exists() else {}
    kept = ("autoscale_", "delta_", "full_bytes", "large_")
    figures = {key: value for key, value in known.items() if key.startswith(kept)}
    if not skip_autoscaling:
        from benchmarks import autoscaling

        seconds = autoscaling.measure()
        figures |= {key: {"value": seconds[key], "unit": "s"} for key in ("autoscale_up_s", "autoscale_down_s")}
    if not skip_delta:
        from benchmarks import weight_delta

        with tempfile.TemporaryDirectory() as folder:
            figures |= weight_delta.measure(delta_run or make_run(Path(folder) / "demo"))
    return figures


def main(
    skip_autoscaling: Annotated[bool, typer.Option(help="Do not start a cluster that scales.")] = False,
    skip_delta: Annotated[bool, typer.Option(help="Do not measure the share of weights that change.")] = False,
    delta_run: Annotated[
        Path | None, typer.Option(help="Folder of a demo run that has passed the gate; made if absent.")
    ] = None,
) -> None:
    figures, curves = measure()
    figures |= other_figures(skip_autoscaling, skip_delta, delta_run)
    draw_scaling(curves)
    write_results(NAME, figures, "python -m benchmarks.coordinator")
    print(scaling_table(curves))
    print(explain(curves))
    for key, figure in figures.items():
        bar = f"   (bar {BARS[key]:g})" if key in BARS else ""
        print(f"{key}: {figure['value']} {figure['unit']}{bar}")


if __name__ == "__main__":
    typer.run(main)
