"""A run in Python: act in its worlds, watch what happens there, go on training.

    run = wmpo_ray.load("runs/demo")
    clip = run.imagine(run.starts("held-out")[0], seed=0)
    clip.judge()

T actions and T+1 frames in a clip, D action dimensions, W windows of a reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wmpo_ray.clips import Clip, Score
from wmpo_ray.config.loading import validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.interfaces import Policy, RewardModel, World
from wmpo_ray.core.observations import Rollout, StartState
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes, Videos
from wmpo_ray.data.store import load_episodes
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.registry import load_policy, load_reward_model, load_world_model, make_environment
from wmpo_ray.report.result_sections import verdict
from wmpo_ray.report.run_data import read_run_metrics
from wmpo_ray.report.run_view import progress, run_html
from wmpo_ray.rollout.act import SeedsOf, act
from wmpo_ray.rollout.fidelity import starts_of
from wmpo_ray.rollout.judge import VideoJudge, verify
from wmpo_ray.rollout.replay import replay
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.round_folders import label_of, newest_result

__all__ = ["Clip", "Run", "Score", "load"]

Which = Literal["final", "base"]
POLICIES = {"base": ("base-policy", "policy"), "final": ("policy", "optimize")}  # folder among models, stage
WORLD = "world-model"  # the stage
RECORDED = {"demos": "demos", "collect": "collect", "held-out": "collect"}  # name of a trajectory file -> its stage


def load(path: str | Path) -> Run:
    """The run in a folder, finished or not. Raises UserError where there is none."""
    return Run(path)


class Run:
    """The folder of a run. Models are loaded when they are first needed, and kept.

    Loading one fixes the number of threads and the matrix precision of this process to those of the run, so that what
    is imagined here is what the run would imagine.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config: Config = RunFolder(self.path).config
        self._kept: dict[str, Any] = {}

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says now: stages with their metrics, and the result."""
        return RunFolder(self.path).summary

    def __repr__(self) -> str:
        run = read_run_metrics(self.path)
        return f"<run {run.name!r} in {self.path}: {progress(run)} {verdict(run)}>"

    def _repr_html_(self) -> str:
        return str(run_html(self.path))

    # -- what the run has recorded and trained -------------------------------------------------------------------

    def episodes(self, name: str = "held-out") -> Episodes:
        """Recorded real episodes: "demos", "collect" or "held-out". Raises UserError where there are none yet."""
        if name not in RECORDED:
            raise UserError(f"{name!r}: the episodes of a run are {', '.join(RECORDED)}")
        path, what = f"trajectories/{name}.parquet", f"{name} episodes"
        return self._keep(path, lambda: load_episodes(newest_result(RunFolder(self.path), path, RECORDED[name], what)))

    def starts(self, name: str = "held-out") -> list[StartState]:
        """The start state of each of these episodes: first frame, instruction and seed."""
        return starts_of(self.episodes(name))

    def policy(self, which: Which = "final") -> Policy:
        """The last policy of the run, or the base policy. Raises UserError while there is none."""
        if which not in POLICIES:
            raise UserError(f'policy="{which}": it must be {" or ".join(map(repr, POLICIES))}')
        folder, stage = POLICIES[which]
        return self._model(folder, stage, f"{which} policy", lambda path: load_policy(self.config, path))

    def world_model(self) -> World:
        """Where `imagine` acts: the aligned world model, or the simulator in its place."""
        if not self.config.world_model.is_learned:
            return self._keep("world-model", lambda: load_world_model(self.config, ""))
        return self._model("world-model", WORLD, "world model", lambda path: load_world_model(self.config, path))

    def reward_model(self) -> RewardModel:
        stage, what = "reward-model", "reward model"
        return self._model("reward-model", stage, what, lambda path: load_reward_model(self.config, path))

    def environment(self) -> EnvironmentWorld:
        """The real environment. Raises ConfigError where this version has no simulator of it."""
        length = self.config.rollout.chunk_length
        return self._keep("environment", lambda: EnvironmentWorld(make_environment(self.config.environment), length))

    # -- acting --------------------------------------------------------------------------------------------------

    def imagine(
        self, start: StartState, seed: int = 0, *, policy: Which = "final", temperature: float | None = None
    ) -> Clip:
        """The policy acting in the world model for a whole episode; the same seed gives the same clip.

        temperature: of the policy, 0 takes the likeliest actions; None: `evaluation.temperature`.
        """
        rollout = self._act(self.world_model(), start, seed, policy, temperature, past_end=True)
        return _clip(rollout, start, f"{policy} policy in the world model, seed {seed}", decide=self._judge)

    def real(
        self, start: StartState, seed: int = 0, *, policy: Which = "final", temperature: float | None = None
    ) -> Clip:
        """The same in the real environment, which says itself what succeeded."""
        rollout = self._act(self.environment(), start, seed, policy, temperature, past_end=False)
        assert rollout.success is not None
        success = bool(rollout.success[0])
        score = Score(success, int(rollout.lengths[0]), float(success))
        return _clip(rollout, start, f"{policy} policy in the real environment, seed {seed}", score)

    def _act(
        self, world: World, start: StartState, seed: int, policy: Which, temperature: float | None, past_end: bool
    ) -> Rollout:
        if not isinstance(start, StartState):
            raise UserError(f"start = {start!r}: give a start state, such as run.starts()[0]")
        network = self.policy(policy)
        heat = self.config.evaluation.temperature if temperature is None else temperature
        return act(network, world, [start], self.config.episode_chunks, heat, self._seeds(seed), past_end=past_end)

    def _seeds(self, seed: int, *word: str) -> SeedsOf:
        return lambda purpose, chunk: [seed_for(self.config.seed, "clip", *word, purpose, seed, chunk)]

    def _judge(self, clip: Clip) -> Score:
        model, settings = self.reward_model(), self.config.reward
        videos = Videos(clip.frames[None], (clip.instruction,), clip.actions[None], (clip.start,))
        windows = model.probabilities(clip.frames[None], videos.instructions)
        scores = model.decide(windows, settings.min_steps, videos.horizon)
        if settings.verify.enabled:
            judge, disputed = VideoJudge(model, settings.min_steps), settings.verify.disputed
            scores = verify(scores, videos, judge, self._replay_in_verifier, disputed)
        unknown = scores.known is not None and not scores.known[0]
        refuted = scores.refuted is not None and bool(scores.refuted[0])
        success, finish_step, probability = scores.success[0], scores.finish_step[0], scores.probability[0]
        return Score(bool(success), int(finish_step), float(probability), refuted, windows[0], unknown)

    def _replay_in_verifier(self, videos: Videos, rows: np.ndarray) -> np.ndarray:
        world: World = self._model("verifier", WORLD, "verifier", lambda path: load_world_model(self.config, path))
        frames = replay(world, videos.starts, videos.actions[rows], self._seeds(0, "verify")).frames
        assert frames is not None
        return frames

    # -- going on ------------------------------------------------------------------------------------------------

    def train(
        self,
        num_updates: int | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        serial: bool = False,
        force: bool = False,
    ) -> Run:
        """Go on with the run's recipe, as `wmpo run --resume` does; returns this run.

        num_updates: of the policy, altogether. settings: others by dotted key, as `{"grpo.learning_rate": 1e-5}`;
        stages that depend on what they change are done again. serial: in this process, without Ray. force: go on past
        a gate that is not met. Raises UserError for fewer updates than before: that would train the policy anew.
        """
        from cluster.host.job import cluster_address
        from cluster.host.security import prepare_ray

        config = _with_settings(self.config, {**self._updates(num_updates), **(settings or {})})
        if not serial:
            prepare_ray(cluster_address(config))  # before Ray is imported
        from cluster.recipes.pipeline import run_pipeline

        try:
            run_pipeline(config, self.path, resume=True, serial=serial, force=force, console=make_console())
        finally:
            self._kept.clear()
            self.config = RunFolder(self.path).config
        return self

    def _updates(self, wanted: int | None) -> dict[str, Any]:
        """The setting for so many updates. Raises UserError where that would throw updates away."""
        if wanted is None:
            return {}
        folder, key = RunFolder(self.path), f"{self.config.algorithm.section}.num_updates"
        if wanted < 1:
            raise UserError(f"num_updates={wanted}: give 1 or more, of all updates together")
        labels = [label_of("optimize", round + 1) for round in range(self.config.recipe.rounds)]
        is_begun = any(folder.record(label) or folder.begun(label) for label in labels)
        if is_begun and wanted < (present := self.config.training.num_updates):
            raise UserError(
                f"num_updates={wanted}: this run is set to {present}, and fewer would train its policy anew; give {present} "
                f'or more, or settings={{"{key}": {wanted}}} to train it anew'
            )
        return {key: wanted}

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _model(self, folder: str, stage: str, what: str, load: Callable[[str], Any]) -> Any:
        def ready() -> Any:
            path = newest_result(RunFolder(self.path), f"models/{folder}", stage, what)
            configure_process(self.config.cluster.threads_per_process)
            return load(str(path))

        return self._keep(f"models/{folder}", ready)

    def _keep(self, key: str, load: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = load()
        return self._kept[key]


def _clip(rollout: Rollout, start: StartState, origin: str, score: Score | None = None, decide: Any = None) -> Clip:
    frames = rollout.frames
    assert frames is not None
    return Clip(frames[0], rollout.flat_actions[0], start, rollout.instructions[0], origin, score, decide)


def _with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Raises ConfigError for a setting that is unknown or does not fit the others."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for key, value in settings.items():
        *sections, name = key.split(".")
        table: Any = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"unknown key {key}: {section} is no section of settings")
        table[name] = value
    return validate(data)
