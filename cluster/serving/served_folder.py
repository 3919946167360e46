"""What `wmpo serve` was given: a run, which knows its settings, or the folder of a policy, which does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.remote.served_weights import LATEST, Weights, find_weights
from wmpo_ray.runs.folder import CONFIG, RunFolder
from wmpo_ray.runs.summary_file import SUMMARY


def choose_weights(
    folder: Path, checkpoint: str, config: str | None, overrides: Sequence[str]
) -> tuple[Config, Callable[[], Weights]]:
    """(settings, what finds the weights). Raises UserError for a folder that is neither, and one without settings."""
    if (folder / CONFIG).is_file() and (folder / SUMMARY).is_file():
        if config is not None or overrides:
            raise UserError(f"{folder} is a run, which knows its settings: leave out --config and --set")
        return RunFolder(folder).config, lambda: find_weights(folder, checkpoint)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name a run or the folder of a policy")
    if config is None:
        raise UserError(f"{folder} is no run: say with --config PRESET|FILE what its policy was made for")
    if checkpoint != LATEST:
        raise UserError(f"--checkpoint {checkpoint}: the folder of a policy holds one; name a run")
    return load_config(config, overrides), lambda: Weights(folder, 0)
