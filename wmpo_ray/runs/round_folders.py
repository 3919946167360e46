"""Where the rounds of a run are kept."""

from __future__ import annotations

from pathlib import Path


def round_folder(run: Path, round: int) -> Path:
    """Round 1 stands directly in the run's folder."""
    return run if round == 1 else run / "rounds" / str(round)
