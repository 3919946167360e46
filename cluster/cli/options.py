"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from wmpo_ray.core.errors import UserError


def user_path(text: str | Path) -> Path:
    """A path of the command line, `~` expanded: shells leave it alone in `--out=~/runs`.

    Raises UserError for the home of a user that does not exist, where a folder called `~name` would be made.
    """
    path = Path(os.path.expanduser(text))
    if path.parts and path.parts[0].startswith("~"):
        raise UserError(f"{text}: {path.parts[0]} is no user's home; write ./{text} for a folder of that name")
    return path


Source = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset (see `wmpo presets`) or a TOML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
Rounds = Annotated[
    int | None,
    typer.Option("--rounds", min=1, help="Rounds of collecting with the last policy and improving it: recipe.rounds."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", parser=user_path, help="Folder of a run.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        parser=user_path,
        help="Folder of the run; created where it is missing. Without it $WMPO_RUNS/NAME, or runs/NAME.",
    ),
]
WorkingDir = Annotated[
    Path,
    typer.Option(
        metavar="DIR", parser=user_path, help="Folder that is sent along; what .gitignore and .rayignore name stays."
    ),
]


def with_rounds(overrides: list[str] | None, rounds: int | None) -> list[str]:
    """The overrides of a command line with those of its --rounds."""
    return [*(overrides or ()), *([] if rounds is None else [f"recipe.rounds={rounds}"])]
