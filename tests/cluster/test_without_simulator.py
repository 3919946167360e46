"""Recorded episodes without a simulator: a run goes on up to the first stage that needs one, which is named with its reason."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.reuse.fork import fork_run
from cluster.recipes.simulator_needs import check_simulator_of
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data.about import Provenance
from wmpo_ray.data.store import save_episodes
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.pocket.pocket_kind import PocketKind
from wmpo_ray.environments.without_simulator import RecordedEnvironment
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert

NUM = 12
NO_REAL_EPISODES = ("gate.num_counterfactuals=0", "evaluation.every_updates=0")
SMALL = (
    "policy.cloning.steps=2",
    "world_model.alignment.steps=2",
    "reward.steps=2",
    "grpo.num_updates=1",
    "filter.dynamic_sampling=false",  # groups of one outcome will do
)


@pytest.fixture
def sources(tmp_path) -> tuple[str, ...]:
    """Settings that take every episode from a file."""
    settings = []
    for section, noise in (("demos", 0.2), ("collect", 1.5), ("gate", 1.5)):
        environment, path = make_environment(load_config("smoke").environment), tmp_path / f"{section}.parquet"
        episodes = rollout_expert(environment, start_seeds(section, NUM, 0), noise, (0, section))
        save_episodes(path, episodes, Provenance(origin="real", made_by="a person"))
        settings += [f"{section}.source={path}", f"{section}.num_trajectories={NUM}"]
    return tuple(settings)


@pytest.fixture
def no_simulator(monkeypatch) -> None:
    """The embedded task as if its simulator were not here."""

    def check(self, config):
        raise ConfigError("environment.kind: no simulator of it")

    monkeypatch.setattr(PocketKind, "check", check)
    monkeypatch.setattr(PocketKind, "make", lambda self, config: RecordedEnvironment(config, self.facts(config)))


def test_recorded_episodes_are_learned_from_up_to_the_evaluation(sources, no_simulator, tmp_path):
    config, out = load_config("smoke", [*sources, *NO_REAL_EPISODES, *SMALL]), tmp_path / "run"
    summary = run_pipeline(config, out, serial=True, force=True, until="optimize")
    assert list(summary["stages"]) == ["demos", "policy", "collect", "world-model", "reward-model", "gate", "optimize"]
    gate = summary["stages"]["gate"]["metrics"]
    assert gate["num"] == NUM and not [name for name in gate if name.startswith(("grasp", "counterfactual"))]
    with pytest.raises(
        ConfigError, match=r"no simulator of it; the simulator is needed by evaluate \(its episodes are"
    ):
        run_pipeline(config, out, serial=True, resume=True, force=True)
    assert run_pipeline(config, out, serial=True, resume=True, until="optimize")["stages"] == summary["stages"]


def message(*settings: str, only: tuple[str, ...] = ()) -> str:
    config = load_config("smoke", settings)
    with pytest.raises(ConfigError) as caught:
        check_simulator_of(config, [step for step in steps_of(config) if not only or step.label in only])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_who_needs_it_is_named_with_the_setting(sources, no_simulator):
    everything = message()
    for reason in (
        "demos (demos.source is empty)",
        "collect (collect.source and gate.source are empty)",
        "gate (gate.num_counterfactuals = ",
        "optimize (evaluation.every_updates = ",
        "evaluate (",
    ):
        assert reason in everything
    assert "--until" not in everything, "nothing comes before the first stage"
    assert message(*sources, *NO_REAL_EPISODES).endswith(
        "its episodes are real ones); --until optimize runs what comes before"
    )
    assert "gate (world_model.kind" in message(
        "world_model.kind=simulator", "reward.verify.enabled=false", only=("gate",)
    )
    assert "collect (gate.source is empty)" in message("collect.source=a.parquet")


def test_no_folder_is_made_for_a_run_that_cannot_begin(no_simulator, tmp_path):
    with pytest.raises(ConfigError, match="the simulator is needed by demos"):
        run_pipeline(load_config("smoke"), tmp_path / "run", serial=True)
    assert not (tmp_path / "run").exists()


def test_a_fork_asks_only_for_what_it_will_run(sources, monkeypatch, tmp_path):
    config = load_config("smoke", [*sources, *NO_REAL_EPISODES, *SMALL])
    run_pipeline(config, tmp_path / "run", serial=True, until="policy")
    monkeypatch.setattr(PocketKind, "check", lambda self, config: (_ for _ in ()).throw(ConfigError("no simulator")))
    with pytest.raises(ConfigError, match=r"no simulator; the simulator is needed by evaluate \(.*; --until optimize"):
        fork_run(tmp_path / "run", tmp_path / "fork", ["world_model.alignment.steps=3"])
    assert not (tmp_path / "fork").exists()


def test_an_environment_of_recorded_episodes_places_no_scene():
    config = load_config("aloha").environment
    environment, facts = make_environment(config), environment_facts(config)
    assert (environment.frame_shape, environment.action_dim) == (facts.frame_shape, facts.action_dim)
    assert environment.abilities == frozenset() and len(environment.terminated) == 0
    for use in (lambda: environment.restore([]), lambda: environment.advance(np.zeros((0, 7))), environment.render):
        with pytest.raises(ConfigError, match='environment.kind="aloha": this version has no simulator of it'):
            use()
