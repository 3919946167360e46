"""Where the rounds of a run are kept, and the newest of what they have made."""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder


def round_folder(run: Path, round: int) -> Path:
    """Round 1 stands directly in the run's folder."""
    return run if round == 1 else run / "rounds" / str(round)


def label_of(stage: str, round: int) -> str:
    """What the stage of a round is called in `summary.json`."""
    return stage if round == 1 else f"{stage}-{round}"


def newest_result(run: RunFolder, name: str, stage: str, what: str) -> Path:
    """The file or folder called `name` that the last round left in which `stage` is done.

    Raises UserError, which calls it `what`, where there is none.
    """
    rounds = range(run.config.recipe.rounds, 0, -1)
    for round in rounds:
        path = round_folder(run.path, round) / name
        if run.is_done(label_of(stage, round)) and path.exists():
            return path
    recipe = run.summary.get("recipe", {})
    if recipe.get("stages") and stage not in recipe["stages"]:
        raise UserError(f'{run.path} has no {what}: its recipe "{recipe.get("kind")}" makes none')
    raise UserError(
        f"{run.path} has no {what} yet: the stage {stage} has not finished; go on with `wmpo run ... --resume` or "
        "run.train()"
    )
