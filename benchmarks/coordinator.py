"""The main loop with up to 256 simulated imagination actors at full-size service times.

The loop, its pools, queue and ledger are the real ones; the actors and the clock are not (cluster/simulation/simulated_runtime.py).

    python -m benchmarks.coordinator [--skip-autoscaling] [--skip-delta | --delta-run RUN]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.coordinator_scaling import (
    ACTORS,
    GROUPS_PER_UPDATE,
    Point,
    draw_scaling,
    explain,
    scaling_table,
)
from benchmarks.measured_runtime import MeasuredLedger, MeasuredRuntime, Times, read_service_times
from benchmarks.prepared_run import make_run
from benchmarks.results_file import RESULTS_DIR, write_results
from cluster.loop.ledger import FILE_NAME, State
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.simulation.simulated_actors import SimulatedWorld
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import StartState, Verdict

NAME = "coordinator"
GROUP_SIZE = 8
ACTORS_PER_REWARD_ACTOR = 16
BARS = {"events_per_s": 1000.0, "busy_share_256": 0.02, "surplus_rollouts_share": 0.05}


class Setup(NamedTuple):
    actors: int
    groups_per_request: int = 1
    staleness: int = 0
    speculation: float = 0.0
    keep_rate: float = 0.5
    updates: int = 4
    heartbeat_every_s: float = 2.0
    speed: float = 1.0  # all actors this much faster than full-size ones


class Outcome(NamedTuple):
    """Figures of one run; the first update, in which models are loaded, is left out of `update_s`."""

    update_s: float  # virtual seconds of an update
    driver_s: float  # seconds of the driver's own, for all updates
    virtual_s: float
    num_events: int  # lines of the ledger
    surplus_share: float  # of the groups whose imagination was begun, those that no batch needed
    groups_per_update: float  # groups whose imagination was begun


def make_config(setup: Setup) -> Config:
    rollout = {
        "group_size": GROUP_SIZE,
        "groups_per_update": GROUPS_PER_UPDATE,
        "groups_per_request": setup.groups_per_request,
        "speculation": setup.speculation,
        "max_attempts": 4096,
    }
    cluster = {
        "imagination_actors": setup.actors,
        "reward_actors": max(1, setup.actors // ACTORS_PER_REWARD_ACTOR),
    }
    return Config.model_validate(
        {
            "rollout": rollout,
            "grpo": {"num_updates": setup.updates},
            "filter": {"max_staleness": setup.staleness},
            "evaluation": {"every_updates": 0},
            "cluster": cluster,
            "faults": {
                "heartbeat_every_s": setup.heartbeat_every_s,
                "heartbeat_timeout_s": 5 * setup.heartbeat_every_s,
            },
        }
    )


def simulate(setup: Setup, seed: int = 0) -> Outcome:
    """One run of the real main loop, with a ledger on the disk."""
    config = make_config(setup)
    starts = [StartState(np.zeros((1, 2, 2, 3), np.uint8), "", index) for index in range(128)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = SimulatedWorld(setup.keep_rate)
        runtime = MeasuredRuntime(world.stand_ins(), read_service_times(setup.groups_per_request, setup.speed), seed)
        log, ledger = Times(runtime.clock), MeasuredLedger(folder / FILE_NAME)
        team = Team(config, runtime, ModelPaths(folder, folder, None, folder, folder))
        loop = TrainingLoop(config, team, starts, ledger, log, Rollouts(config, team, ledger, *rollout_folders(folder)))
        started = time.thread_time()
        loop.run(str(folder / "policy"))
        driver_s = time.thread_time() - started - runtime.own_s + ledger.waited_s
        team.stop()
        ledger.close()
    surplus = {
        key
        for key, record in ledger.records.items()
        if record.state is State.REJECTED and record.facts["verdict"] == Verdict.SURPLUS.value
    }
    gaps = [later - earlier for earlier, later in zip(log.updates, log.updates[1:], strict=False)]
    return Outcome(
        statistics.mean(gaps),
        driver_s,
        runtime.clock(),
        ledger.offset,
        len(runtime.begun & surplus) / len(runtime.begun),
        len(runtime.begun) / setup.updates,
    )


# -- scaling -----------------------------------------------------------------------------------------------------

VARIANTS = {
    "on-policy": Setup(8),
    "4 groups a request": Setup(8, groups_per_request=4),
    "speculation 0.05": Setup(8, speculation=0.05),
    "speculation 1": Setup(8, speculation=1.0),
    "staleness 1": Setup(8, staleness=1),
    "both of these": Setup(8, staleness=1, speculation=1.0),
}


def scaling(variant: Setup, actors: Sequence[int] = ACTORS) -> list[Point]:
    quick = variant._replace(updates=3, heartbeat_every_s=60.0)  # heartbeats take none of the actors' time
    outcomes = [simulate(quick._replace(actors=count)) for count in actors]
    first = outcomes[0].update_s * actors[0]
    return [
        Point(count, outcome.update_s, first / (outcome.update_s * count), outcome.surplus_share)
        for count, outcome in zip(actors, outcomes, strict=True)
    ]


# -- all figures -------------------------------------------------------------------------------------------------


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, list[Point]]]:
    largest, busiest = simulate(Setup(256)), simulate(Setup(256, speed=200.0))
    surplus = {keep: simulate(Setup(64, keep_rate=keep)).surplus_share for keep in (0.7, 0.5, 0.3)}
    ahead = {keep: simulate(Setup(64, keep_rate=keep, speculation=0.05)).surplus_share for keep in (0.7, 0.5, 0.3)}
    curves = {name: scaling(variant) for name, variant in VARIANTS.items()}
    figures: dict[str, dict[str, Any]] = {
        "events_per_s": {
            "value": round(busiest.num_events / busiest.driver_s, 1),
            "unit": "ledger lines / second of the driver (processor time outside the simulation, and waiting for fsync), "
            "256 actors that are 200 times faster than full-size ones: it has little else to do",
        },
        "busy_share_256": {
            "value": round(largest.driver_s / largest.virtual_s, 5),
            "unit": "seconds of the driver / second of the run, 256 actors",
        },
        "surplus_rollouts_share": {
            "value": round(max(surplus.values()), 4),
            "unit": "of the trajectories begun, the largest at keep rates 0.7, 0.5, 0.3",
        },
    }
    for name, shares in (("", surplus), ("_speculation_0.05", ahead)):
        for keep, share in shares.items():
            figures[f"surplus_rollouts_share_keep_{keep}{name}"] = {"value": round(share, 4), "unit": "of the begun"}
    for name, points in curves.items():
        figures[f"scaling, {name}"] = {
            "value": [round(point.efficiency, 3) for point in points],
            "unit": f"speed-up over 8 actors / ideal, with {ACTORS} actors",
        }
    return figures, curves


def other_figures(skip_autoscaling: bool, skip_delta: bool, delta_run: Path | None) -> dict[str, dict[str, Any]]:
    """Figures of other benchmarks that stand in the same file; those not measured now are kept as they are."""
    path = RESULTS_DIR / f"{NAME}.json"
    known = json.loads(path.read_text())["figures"] if path.exists() else {}
    figures = {key: value for key, value in known.items() if key.startswith(("autoscale_", "delta_"))}
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
