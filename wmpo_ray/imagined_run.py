"""The imagined world of a run as a gymnasium environment, with the starts that the run trains on.

Importing this module registers `wmpo_ray/Imagined-v0`; without an import of one's own,

    gymnasium.make("wmpo_ray.imagined_run:wmpo_ray/Imagined-v0", run="runs/demo")
    gymnasium.make_vec("wmpo_ray.imagined_run:wmpo_ray/Imagined-v0", 16, "vector_entry_point", run="runs/demo")

do both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import World
from wmpo_ray.data.store import load_episodes
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.imagined import ImaginedEnv, ImaginedVectorEnv
from wmpo_ray.environments.task_of_start import tasks_of
from wmpo_ray.registry import load_reward_model, load_world_model, make_environment
from wmpo_ray.rollout.fidelity import starts_of
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.runs.folder import CONFIG, RunFolder

ENVIRONMENT_ID = "wmpo_ray/Imagined-v0"


def imagined_world(config: Config, run: Path, perfect: bool = False) -> World:
    """The aligned world model of a run, in which its reward model ends trajectories, as in the stage `optimize`.

    `perfect`: the environment itself, which says what succeeded. Raises UserError where the run has no such models.
    """
    if perfect or config.rollout.world == "environment":
        return EnvironmentWorld(make_environment(config.environment), config.rollout.chunk_length)
    world, reward_model = run / "models" / "world-model", run / "models" / "reward-model"
    for path in [reward_model, *([world] if config.world_model.is_learned else [])]:
        if not path.is_dir():
            raise UserError(
                f"no model at {path}; run the stages up to reward-model first (`wmpo run ... --until reward-model`)"
            )
    judge = load_reward_model(config, str(reward_model))
    return JudgedWorld(load_world_model(config, str(world)), judge, config.reward.min_steps, config.rollout_horizon)


def imagined_environments(
    run: str | Path,
    num_envs: int,
    perfect: bool = False,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    config: Config | None = None,
) -> ImaginedVectorEnv:
    """`num_envs` episodes side by side in the world of a run; see `imagined_world`. `config`: if not the run's own."""
    folder = Path(run)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run: there is no {CONFIG} in it")
    own = config or read_config_json(folder / CONFIG)
    starts = starts_of(load_episodes(folder / "trajectories" / "collect.parquet"))
    tasks, gate = tasks_of(own.environment), RunFolder(folder).record("gate")
    if tasks is not None and (without := (gate or {}).get("metrics", {}).get("left_out")):
        starts = [start for start in starts if tasks.of_start(start) not in without]
        if not starts:
            raise UserError(f"{folder}: no episode was collected of the tasks that the gate has not left out")
    action_dim = environment_facts(own.environment).action_dim
    return ImaginedVectorEnv(
        lambda: imagined_world(own, folder, perfect), starts, num_envs, own.num_chunks, action_dim, autoreset_mode
    )


def one_environment(run: str | Path, perfect: bool = False, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """A single episode at a time in the world of a run."""
    return ImaginedEnv(imagined_environments(run, 1, perfect, AutoresetMode.DISABLED), render_mode)


gymnasium.register(
    ENVIRONMENT_ID,
    entry_point=f"{__name__}:{one_environment.__name__}",
    vector_entry_point=f"{__name__}:{imagined_environments.__name__}",
)
