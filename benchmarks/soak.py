"""Random faults under the demo's GRPO stage, compared with the run that nothing happens to: benchmarks/results/soak.json.

    python -m benchmarks.soak --faults 100 [--mode settled] [--run DIR] [--seed 0] [--keep DIR] [--set KEY=VALUE ...]

Actors, nodes, the GCS and the driver of a run on a cluster of this machine are killed, stopped and preempted at random
moments: in the mode `relentless` every few seconds, in the mode `settled` only once the last fault is mended. A round
ends with the stage; rounds follow each other until there have been enough faults, in several calls if they are given the
same `--keep`. The figures of the other mode are kept under its name.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.prepared_run import STAGE, check_run, copy_run, make_run
from benchmarks.results_file import RESULTS_DIR, write_results
from benchmarks.soak_cluster import CrashableCluster
from benchmarks.soak_faults import ROOT, Driver, Tormentor
from benchmarks.soak_ledger import LedgerWatch, Round, read_round, recoveries
from benchmarks.soak_pace import PATIENCE_S, Mending, Relentless, Settled
from benchmarks.soak_picture import draw
from wmpo_ray.config.loading import load_config
from wmpo_ray.runs.folder import RunFolder

NUM_NODES, NODE_CPUS = 2, 2.0  # beside the head; they come and go
POOL = {"pool": "extra"}  # their label
MODES = ("relentless", "settled")
POLL_S = 0.2
# A fault every few seconds is more than any run is meant to put up with.
PATIENCE = {
    "faults.heartbeat_every_s": "1",
    "faults.heartbeat_timeout_s": "8",
    "faults.max_start_failures": "100",
    "faults.max_crashes": "100",
    "faults.backoff_s": "0.1",
    "faults.max_backoff_s": "2",
    "cluster.imagination_actors": "2",
    "placement.imagination.labels": '["pool=extra"]',
}


Show = Callable[[int, int], None]  # told of (faults, groups trained) of the round


class Soak:
    """`run`: folder of a run with every stage up to the gate done; `folder`: where the copies go."""

    def __init__(self, run: Path, folder: Path, settings: Sequence[str], seed: int, mode: str = "relentless"):
        self.run, self.folder, self.settings, self.mode = run, folder, list(settings), mode
        self.seed = seed
        self.rounds: list[Round] = []  # those that an earlier call has finished in the same folder, first
        while (path := self._facts(len(self.rounds) + 1)).is_file():
            self.rounds.append(read_round(path))

    # -- the run that nothing happens to -------------------------------------------------------------------------

    def reference(self) -> tuple[str, LedgerWatch]:
        """Digest of its final weights, and its ledger; one that is there is not run again."""
        folder = self.folder / "reference"
        if not (folder.exists() and RunFolder(folder).is_done(STAGE)):
            shutil.rmtree(folder, ignore_errors=True)
            copy_run(self.run, folder, self.settings)
            subprocess.run([*self._command(folder, []), "--serial"], cwd=ROOT, check=True)
        watch = LedgerWatch(folder)
        watch.read()
        return digest_of(folder), watch

    def _command(self, folder: Path, settings: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "wmpo_ray", "stage", STAGE, "demo", "--out", str(folder), "--resume"]
        return command + [word for setting in (*self.settings, *settings) for word in ("--set", setting)]

    # -- the runs that it happens to -----------------------------------------------------------------------------

    def torment(self, num_faults: int, reference: LedgerWatch) -> None:
        """Rounds until there have been so many faults; the last one ends undisturbed."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with (
            CrashableCluster(1, NUM_NODES, NODE_CPUS, POOL) as cluster,
            Progress(*columns, console=Console(stderr=True)) as bars,
        ):
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            try:
                bar = bars.add_task("faults", total=num_faults)
                while (done := sum(len(one.faults) for one in self.rounds)) < num_faults:
                    groups = bars.add_task(f"groups, round {len(self.rounds) + 1}", total=len(reference.trained))

                    def show(faults: int, trained: int, before: int = done, groups: TaskID = groups) -> None:
                        bars.update(bar, completed=before + faults)
                        bars.update(groups, completed=trained)

                    self._round(cluster, num_faults - done, reference, show)
            finally:
                ray.shutdown()

    def _round(self, cluster: CrashableCluster, num_faults: int, reference: LedgerWatch, show: Show) -> None:
        number = len(self.rounds) + 1
        folder, chance = self._facts(number).with_suffix(""), random.Random(f"{self.seed}/{number}")
        shutil.rmtree(folder, ignore_errors=True)
        copy_run(self.run, folder, self.settings)
        patience = [f"{key}={value}" for key, value in PATIENCE.items()]
        watch, this = LedgerWatch(folder), Round(time.time())
        driver = Driver(
            self._command(folder, [*patience, f"cluster.address={cluster.address}"]), self.folder / f"{folder.name}.log"
        )
        tormentor = Tormentor(cluster, driver, chance, watch.read)
        pace = self._pace(folder, cluster, watch, chance)
        try:
            while not driver.is_done:
                is_due = len(this.faults) < num_faults and pace.is_due
                if is_due and (fault := tormentor.inject()) is not None:
                    this.faults.append(fault)
                    pace.injected(fault)
                watch.read()
                this.progress.append((time.time() - this.started, len(watch.trained)))
                show(len(this.faults), len(watch.trained))
                time.sleep(POLL_S)
        finally:
            driver.kill()
        watch.read()
        this.unmended = pace.num_unmended
        self._close(this, folder, watch, reference, driver)

    def _pace(self, folder: Path, cluster: CrashableCluster, watch: LedgerWatch, chance: random.Random) -> Relentless:
        if self.mode == "relentless":
            return Relentless(chance)
        spares = load_config("demo", self.settings).cluster.spares
        return Settled(chance, Mending(folder, cluster, watch, spares))

    def _close(self, this: Round, folder: Path, watch: LedgerWatch, reference: LedgerWatch, driver: Driver) -> None:
        this.seconds = time.time() - this.started
        this.digest, this.drivers, this.driver_crashes = digest_of(folder), driver.num_starts, driver.crashes
        account = watch.account()
        this.lost = account.waiting + account.in_flight + len(reference.trained - watch.trained)
        this.trained_twice, this.imagined_again = watch.num_trained_twice, watch.num_imagined_again
        this.account = {**account._asdict(), "balances": account.balances, "verdicts": watch.verdicts()}
        this.recoveries = recoveries(folder, this.faults)
        self.rounds.append(this)
        this.write(self._facts(len(self.rounds)))

    def _facts(self, number: int) -> Path:
        return self.folder / f"{self.mode}-{number}.json"


def digest_of(folder: Path) -> str:
    return RunFolder(folder).metrics(STAGE)["weights"]


# -- the figures -------------------------------------------------------------------------------------------------


def figures_of(rounds: Sequence[Round], reference: str, mode: str) -> dict[str, dict[str, Any]]:
    faults = [fault for one in rounds for fault in one.faults]
    gcs = [fault.recovery_s for fault in faults if fault.recovery_s is not None]
    actors = [pair for one in rounds for pair in one.recoveries.actors]
    nodes = [seconds for one in rounds for seconds in one.recoveries.nodes]

    def count(kind: str) -> int:
        return sum(fault.kind == kind for fault in faults)

    figures: dict[str, tuple[float | str, str]] = {
        "mode": (mode, "relentless: a fault every few seconds; settled: only once the last one is mended"),
        "faults": (len(faults), "injected"),
        "groups_lost": (sum(one.lost for one in rounds), "groups"),
        "groups_trained_twice": (sum(one.trained_twice for one in rounds), "groups"),
        "weights_identical": (float(all(one.digest == reference for one in rounds)), "1: in every round"),
        "admitted_groups_imagined_again": (sum(one.imagined_again for one in rounds), "groups"),
        "driver_kills": (count("kill driver") + count("preempt driver"), "kill -9 and SIGTERM"),
        "driver_crashes": (sum(len(one.driver_crashes) for one in rounds), "ends that nobody brought about"),
        "node_removals": (count("remove node"), "faults"),
        "gcs_kills": (count("kill gcs"), "faults"),
        "rounds": (len(rounds), "runs of the stage"),
        "seconds": (round(sum(one.seconds for one in rounds), 1), "s, all rounds"),
    }
    if mode == "settled":
        figures["unmended"] = (sum(one.unmended for one in rounds), f"faults, not mended within {PATIENCE_S:g} s")
    without, with_load = [seconds - load for seconds, load in actors], [seconds for seconds, _ in actors]
    for name, values, unit in (
        ("actor_recovery", without, "s, without loading models, and libraries only where no spare had them"),
        ("actor_recovery_with_load", with_load, "s"),
        ("node_recovery", nodes, "s, from the kill of the raylet until its actors serve"),
        ("gcs_recovery", gcs, "s, from its restart until a new actor answers"),
    ):
        if values:
            figures[f"{name}_p50_s"] = (round(float(np.percentile(values, 50)), 3), unit)
            figures[f"{name}_p95_s"] = (round(float(np.percentile(values, 95)), 3), unit)
    for name in ("node_recovery", "gcs_recovery"):
        if f"{name}_p95_s" in figures:
            figures[f"{name}_s"] = figures.pop(f"{name}_p95_s")
    return {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()}


def figures_of_others(mode: str) -> dict[str, dict[str, Any]]:
    """What is written of other modes: those of the last run under the name of its mode."""
    path = RESULTS_DIR / "soak.json"
    known = json.loads(path.read_text())["figures"] if path.exists() else {}
    last = known.get("mode", {"value": "relentless"})["value"]
    named = {name if "/" in name else f"{last}/{name}": figure for name, figure in known.items() if name != "mode"}
    return {name: figure for name, figure in named.items() if not name.startswith(f"{mode}/")}


def tables(rounds: Sequence[Round], reference: str, figures: dict[str, dict[str, Any]]) -> list[Table]:
    rows = Table("round", "faults", "drivers", "seconds", "issued", "trained", "rejected", "lost", "twice", "weights")
    for number, one in enumerate(rounds, 1):
        account = one.account
        told = [number, len(one.faults), one.drivers, f"{one.seconds:.0f}"]
        told += [account["issued"], account["trained"], account["rejected"], one.lost, one.trained_twice]
        rows.add_row(*map(str, told), "identical" if one.digest == reference else f"[red]{one.digest}[/red]")
    values = Table("figure", "value", "")
    for name, figure in figures.items():
        values.add_row(name, f"{figure['value']:g}" if name != "mode" else figure["value"], figure["unit"])
    return [rows, values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--mode", choices=MODES, default="relentless", help="when the next fault comes")
    parser.add_argument("--run", type=Path, help="a run done up to the gate; it is copied (default: one is made)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    parser.add_argument("--keep", type=Path, help="folder for the copies; another call goes on after its rounds")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for the stage"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = arguments.run or make_run(folder / "run", arguments.settings)
        check_run(run)
        soak = Soak(run, folder, arguments.settings, arguments.seed, arguments.mode)
        reference, ledger = soak.reference()
        soak.torment(arguments.faults, ledger)
    figures = figures_of(soak.rounds, reference, arguments.mode)
    for table in tables(soak.rounds, reference, figures):
        Console().print(table)
    command = f"python -m benchmarks.soak --faults {arguments.faults} --mode {arguments.mode} --seed {arguments.seed}"
    command = " ".join([command, *(f"--set {s}" for s in arguments.settings)])
    print(write_results("soak", figures | figures_of_others(arguments.mode), command))
    longest = max(soak.rounds, key=lambda one: len(one.faults))
    (ROOT / "docs" / "soak.svg").write_text(draw(longest.started, longest.progress, longest.faults))


if __name__ == "__main__":
    main()
