"""A run folder with untrained models and held-out episodes, as far as the gate: what `wmpo fidelity` reads."""

from pathlib import Path
from typing import Any

from tests.support.recorded_pocket import recorded_episodes
from tests.support.small_run import SETTINGS, save_models
from wmpo_ray.config.run import Config
from wmpo_ray.data.store import episode_writer
from wmpo_ray.runs.folder import RunFolder

STAGES = ("demos", "policy", "collect", "world-model", "reward-model", "gate", "optimize", "evaluate")


def write_measurable_run(folder: Path, done: tuple[str, ...] = STAGES[:5], **settings: Any) -> Path:
    """8 held-out episodes of 8 steps; the stages `done` are recorded as finished."""
    config = Config.model_validate({**SETTINGS, **settings})
    save_models(folder.parent / "made", config)
    with RunFolder.open(folder, config) as run:
        run.accept(config, STAGES)
        for stage in done:
            run.finish(stage, 1.0, {}, {"key": f"key of {stage}"})
    (folder.parent / "made").rename(folder / "made")
    (folder / "models").rmdir()
    (folder / "made").rename(folder / "models")
    with episode_writer(folder / "trajectories" / "held-out.parquet") as writer:
        writer.append(recorded_episodes(8, 8))
    return folder
