"""Runs cells, as a user would run them, and keeps what came out: one JSON file each, which is all that is read later."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.imagined import imagined_outcomes
from benchmarks.evidence.plan import ALL, Cell, base_name, base_settings
from benchmarks.results_file import RESULTS_DIR, compact_json, current_commit, machine
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_policy
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.outcomes import POLICIES, Outcomes, outcomes_file, read_outcomes, run_outcomes_file
from wmpo_ray.runs.round_folders import label_of, round_folder
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

ROOT = Path(__file__).parents[2]
CELLS = RESULTS_DIR / "evidence"
CURVES = (
    "imagined/success_rate",
    "imagined/verified_success_rate",
    "imagined/unknown_share",
    "imagined/trajectories",
    "rollout/success_rate",
    "rollout/trajectories",
    "real/success_rate",
    "real/label_agreement",
    "real/false_positive_rate",
    "policy/clip_fraction",
    "preference/accuracy",
    "queue/uniform",
    "queue/undecided",
)
GREEDY = 0.0
CPU = "processor_seconds.txt"  # of each process that worked on a run
COMMITS = "commits.txt"  # of the program that each of them ran
DISRUPTIONS = ("position", "background", "texture")


class CellFailed(RuntimeError):
    """A run ended with an error; its log says which."""


def path_of(cell: Cell) -> Path:
    return CELLS / f"{cell.name}.json"


def read(cell: Cell) -> dict[str, Any] | None:
    """What a cell left, or None if it has not been run."""
    path = path_of(cell)
    return json.loads(path.read_text()) if path.is_file() else None


def make_base(kind: str, budget: int, seed: int, runs: Path) -> Path:
    """The stages that cells share, up to the reward model; goes on with what is there."""
    folder = runs / "bases" / base_name(kind, budget, seed)
    if not (folder / "summary.json").is_file() or not RunFolder(folder).is_done("reward-model"):
        _run(folder, base_settings(kind, budget, seed), "--until", "reward-model")
    return folder


def run_cell(cell: Cell, runs: Path) -> Path:
    """Run a cell in a copy of what it shares with others, or go on with it, and write its file. Raises CellFailed."""
    base, folder = shared_run(cell, runs), runs / cell.name
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(base, partial, ignore=shutil.ignore_patterns("report", "*.lock", CPU, COMMITS))
        partial.rename(folder)
    if not _is_finished(folder, cell):
        _run(folder, cell.settings, "--force")  # past the gate, whose metrics are kept
    CELLS.mkdir(parents=True, exist_ok=True)
    atomic_write(path_of(cell), compact_json(_found(cell, folder, base)))
    return path_of(cell)


def shared_run(cell: Cell, runs: Path) -> Path:
    """The folder that a cell begins with a copy of: a base, or the finished run of the method that it repeats."""
    if cell.before is None:
        return make_base(ALL[cell.method].base, cell.budget, cell.seed, runs)
    if not path_of(cell.before).is_file() or not (runs / cell.before.name).is_dir():
        run_cell(cell.before, runs)
    return runs / cell.before.name


def _is_finished(folder: Path, cell: Cell) -> bool:
    config = load_config("demo", cell.settings)
    return RunFolder(folder).is_done(label_of("evaluate", config.recipe.rounds))


def _run(folder: Path, settings: tuple[str, ...], *options: str) -> None:
    command = [*_command(settings), "--out", str(folder), "--resume", "--quiet", *options]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    with open(folder / CPU, "a") as file:
        file.write(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
    with open(folder / COMMITS, "a") as file:
        file.write(f"{current_commit()}\n")
    if process.returncode:
        raise CellFailed(f"{folder.name} ended with {process.returncode}; see {folder.with_suffix('.log')}")


def _command(settings: tuple[str, ...]) -> list[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "wmpo_ray", "run", "demo", "--serial", *words]


def _core_seconds(folder: Path) -> float | None:
    """Processor seconds of all processes that worked on a folder; None if they were not measured."""
    path = folder / CPU
    return sum(map(float, path.read_text().split())) if path.is_file() else None


def _found(cell: Cell, folder: Path, base: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    stages, rounds = run.summary["stages"], run.config.recipe.rounds
    lines = JsonlTracker.read(folder)
    curves = {
        key: [[line["update"], line[key]] for line in lines if isinstance(line.get(key), int | float)] for key in CURVES
    }
    trained = sum(value for _, value in curves["rollout/trajectories"])
    success = {
        round: read_outcomes(outcomes_file(round_folder(folder, round), "final")) for round in range(1, rounds + 1)
    }
    return {
        "command": " ".join(["python", *_command(cell.settings)[1:]]),
        "commit": (folder / COMMITS).read_text().split()[-1],
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "cell": {"method": cell.method, "budget": cell.budget, "seed": cell.seed},
        "core_seconds": _core_seconds(folder),  # of what the cell itself did
        "shared_core_seconds": _core_seconds(base),
        "stage_seconds": {name: stage["seconds"] for name, stage in stages.items()},  # beside other work
        "real_episodes": {"collected": cell.budget, "online": trained},
        "gate": run.metrics("gate") if "gate" in stages else None,
        "reward_model": run.metrics("reward-model") if "reward-model" in stages else None,
        "num_updates": run.metrics("optimize").get("num_updates", 0),
        "rounds": [_bits(each.success) for each in success.values()],
        "sampled": _decoded(read_outcomes(run_outcomes_file(folder, label)) for label in POLICIES),
        "greedy": _decoded(_evaluated(run, temperature=GREEDY)),
        "disrupted": {name: _decoded(_evaluated(run, disruption=name)) for name in DISRUPTIONS},
        "imagined": imagined_outcomes(run) if (run.models / "reward-model").is_dir() and rounds == 1 else None,
        "curves": {key: values for key, values in curves.items() if values},
    }


def _decoded(outcomes: Iterable[Outcomes]) -> dict[str, Any]:
    """Outcomes of the base policy and the final one, from the same starts; a string of 1 and 0 for each list of bits."""
    base, final = outcomes
    policies = {
        label: {
            "success": _bits(each.success),
            "lengths": each.lengths,
            "failures": {name: _bits(flags) for name, flags in each.failures.items()},
        }
        for label, each in zip(POLICIES, (base, final), strict=True)
    }
    return {"seeds": base.starts, "temperature": base.temperature, "policies": policies}


def _bits(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _evaluated(run: RunFolder, temperature: float | None = None, disruption: str = "none") -> Iterator[Outcomes]:
    """Outcomes of the base policy and of the last one, decoded otherwise or in a disrupted environment, same starts."""
    evaluation, environment = run.config.evaluation, run.config.environment
    if temperature is not None:
        evaluation = evaluation.model_copy(update={"temperature": temperature})
    changed = environment.model_copy(update={"disruption": disruption})
    config = run.config.model_copy(update={"evaluation": evaluation, "environment": changed})
    seeds, key = start_seeds("evaluate", evaluation.num_starts, config.seed), (config.seed, "evaluate")
    last = round_folder(run.path, config.recipe.rounds)
    for path in (run.models / "base-policy", last / "models" / "policy"):
        policy = load_policy(config, str(path))
        scenes = make_environment(config.environment)
        episodes = rollout_policy(policy, scenes, seeds, evaluation.temperature, key, keep_frames=False)
        yield Outcomes.of(episodes, config, path, key)
