"""Runs cells, as a user would run them, and keeps what came out: one JSON file each, which is all that is read later."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import Cell, base_settings
from benchmarks.results_file import RESULTS_DIR, current_commit, machine
from cluster.recipes.evaluate import OUTCOMES, outcomes_of
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_policy
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.round_folders import round_folder
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
    folder = runs / "bases" / f"{kind}-p{budget}-s{seed}"
    _run(folder, base_settings(kind, budget, seed), "--until", "reward-model")
    return folder


def run_cell(cell: Cell, base: Path, runs: Path) -> Path:
    """Run a cell in a copy of its base, or go on with it, and write its file. Raises CellFailed."""
    folder = runs / cell.name
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(base, partial, ignore=shutil.ignore_patterns("report", "*.lock"))
        partial.rename(folder)
    _run(folder, cell.settings, "--force")  # past the gate, whose metrics are kept
    CELLS.mkdir(parents=True, exist_ok=True)
    atomic_write(path_of(cell), json.dumps(_found(cell, folder), indent=1, allow_nan=False) + "\n")
    return path_of(cell)


def _run(folder: Path, settings: tuple[str, ...], *options: str) -> None:
    command = [*_command(settings), "--out", str(folder), "--resume", "--quiet", *options]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise CellFailed(f"{folder.name} ended with {code}; see {folder.with_suffix('.log')}")


def _command(settings: tuple[str, ...]) -> list[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "wmpo_ray", "run", "demo", "--serial", *words]


def _found(cell: Cell, folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    stages = run.summary["stages"]
    lines = JsonlTracker.read(folder)
    curves = {
        key: [[line["update"], line[key]] for line in lines if isinstance(line.get(key), int | float)] for key in CURVES
    }
    trained = sum(value for _, value in curves["rollout/trajectories"])
    return {
        "command": " ".join(["python", *_command(cell.settings)[1:]]),
        "commit": current_commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "cell": {"method": cell.method, "budget": cell.budget, "seed": cell.seed},
        "core_seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "real_episodes": {"collected": cell.budget, "online": trained},
        "gate": run.metrics("gate") if "gate" in stages else None,
        "reward_model": run.metrics("reward-model") if "reward-model" in stages else None,
        "num_updates": run.metrics("optimize")["num_updates"],
        "sampled": json.loads((round_folder(folder, run.config.recipe.rounds) / OUTCOMES).read_text()),
        "greedy": _greedy(run),
        "curves": {key: values for key, values in curves.items() if values},
    }


def _greedy(run: RunFolder) -> dict[str, Any]:
    """Outcomes of the most likely actions, on the same starts."""
    config = run.config
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    environment = make_environment(config.environment)
    found = {}
    last = round_folder(run.path, config.recipe.rounds)
    for label, path in (("base", run.models / "base-policy"), ("final", last / "models" / "policy")):
        policy = load_policy(config, str(path))
        episodes = rollout_policy(policy, environment, seeds, GREEDY, (config.seed, "evaluate"), keep_frames=False)
        found[label] = outcomes_of(episodes)
    return {"seeds": seeds.tolist(), "temperature": GREEDY, "policies": found}
