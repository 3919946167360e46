"""Population-based training: who takes over from whom, as a function of the seed and of what was measured."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial

import numpy as np
import pytest

from cluster.sweeps import trial
from cluster.sweeps.population import Population, Takeover, Turn, first_settings, perturbed
from cluster.sweeps.space import Range, SearchSection, Space, read_space
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs.folder import LOCK
from wmpo_ray.runs.folder_lock import FolderLock
from wmpo_ray.watch.sweep_page import render_sweep

RANGES = {
    "grpo.learning_rate": Range(loguniform=(1e-5, 1e-3)),
    "grpo.num_epochs": Range(integers=(1, 4)),
    "grpo.ratio": Range(choice=("token", "chunk", "step")),
}


def space(**search) -> Space:
    return Space(RANGES, SearchSection(scheduler="pbt", **{"trials": 8, **search}))


def population(own: Space) -> Population:
    return Population(first=first_settings(own))


RANKED = {str(i): i / 10 for i in range(8)}


def test_the_worst_take_over_from_the_best_within_the_ranges():
    own = space()
    (turn,) = population(own).with_turn(own, 3, RANKED).turns
    assert [each.trial for each in turn.takeovers] == ["0", "1"]
    assert all(each.source in ("6", "7") for each in turn.takeovers)
    for seed in range(40):
        own = space(seed=seed)
        after = population(own).with_turn(own, 3, RANKED).with_turn(own, 6, RANKED)
        for each in after.settings.values():
            assert 1e-5 <= each["grpo.learning_rate"] <= 1e-3 and each["grpo.num_epochs"] in (1, 2, 3, 4)
            assert isinstance(each["grpo.num_epochs"], int) and each["grpo.ratio"] in RANGES["grpo.ratio"].examples


def test_settings_are_those_of_the_source_changed_by_a_factor_or_drawn_again():
    own = space(resample=0.0, factors=(0.5, 2.0))
    before = population(own)
    for each in before.with_turn(own, 3, RANKED).turns[0].takeovers:
        was, now = before.first[each.source]["grpo.learning_rate"], each.settings["grpo.learning_rate"]
        assert now == pytest.approx(min(max(was * 0.5, 1e-5), 1e-3), rel=1e-3) or now == pytest.approx(
            min(was * 2, 1e-3), rel=1e-3
        )
    own = space(resample=1.0)
    fresh = population(own).with_turn(own, 3, RANKED).turns[0].takeovers
    assert len({each.settings["grpo.learning_rate"] for each in fresh} & {1e-5, 1e-3}) == 0


@pytest.mark.parametrize(("factor", "moved"), [(1.2, [2, 3, 6, 9]), (0.8, [1, 1, 4, 7]), (1.0, [1, 2, 5, 9])])
def test_small_whole_numbers_move_too(factor, moved):
    search, whole = SearchSection(scheduler="pbt", factors=(factor,)), Range(integers=(1, 9))
    assert [perturbed(value, whole, search, np.random.default_rng(0)) for value in (1, 2, 5, 9)] == moved


def test_settings_that_a_run_refuses_together_are_drawn_again():
    """Each end alone would do, but the lower bound of the filter may come to lie above the upper one."""
    from cluster.sweeps.population_training import can_run

    low, high = "filter.min_mean", "filter.max_mean"
    allows = partial(can_run, load_config("smoke"))
    assert [allows({low: value, high: 0.4}) for value in (0.2, 0.6)] == [True, False]
    ranges = {low: Range(uniform=(0.0, 0.8)), high: Range(uniform=(0.2, 1.0))}
    own = Space(ranges, SearchSection(scheduler="pbt", trials=8, resample=1.0))
    assert any(each[low] > each[high] for each in first_settings(own).values()), "it would happen"
    after = Population(first=first_settings(own, allows)).with_turn(own, 3, RANKED, allows)
    assert all(each[low] <= each[high] for each in after.settings.values())
    (kept, *_) = Population(first=after.first).with_turn(own, 3, RANKED, lambda settings: False).turns[0].takeovers
    assert kept.settings == after.first[kept.source], "nothing else can be run"
    with pytest.raises(ConfigError, match=f"of {low}, {high} together .* narrow"):
        first_settings(own, lambda settings: False)


def test_a_trial_waits_for_what_is_left_of_a_killed_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "POLL_S", 0.01)
    trial.wait_until_free(tmp_path)  # never begun
    lock = FolderLock(tmp_path / LOCK)
    waits = threading.Thread(target=trial.wait_until_free, args=(tmp_path,))
    waits.start()
    waits.join(0.1)
    assert waits.is_alive()
    lock.close()
    waits.join(10)
    assert not waits.is_alive()


def test_decisions_depend_on_nothing_else_and_survive_their_record(tmp_path):
    own = space()
    after = population(own).with_turn(own, 3, RANKED)
    assert after == population(own).with_turn(own, 3, dict(reversed(RANKED.items())))
    after.write(tmp_path)
    assert Population.read(tmp_path, own) == after
    assert Population.read(tmp_path, own).with_turn(own, 6, RANKED) == after.with_turn(own, 6, RANKED)
    assert population(space(seed=1)).first != population(own).first
    (tmp_path / "population.json").write_text('{"first": 3}')
    with pytest.raises(UserError, match="is damaged: first = 3"):
        Population.read(tmp_path, own)


def test_those_that_failed_take_over_and_nobody_takes_over_from_an_equal():
    own = space(trials=4)
    failed = population(own).with_turn(own, 3, {"0": None, "1": 0.2, "2": None, "3": 0.2}).turns[0].takeovers
    assert [each.trial for each in failed] == ["0", "2"]
    assert not population(own).with_turn(own, 3, dict.fromkeys("0123", 0.5)).turns[0].takeovers
    alone = space(trials=1)
    assert not population(alone).with_turn(alone, 3, {"0": 0.1}).turns[0].takeovers


def test_a_lineage_names_who_trained_each_stretch_and_with_what():
    from cluster.sweeps.population_training import lineage_of

    first = {name: {"x": float(name)} for name in "012"}
    turns = (
        Turn(update=2, success={}, takeovers=(Takeover(trial="0", source="1", settings={"x": 10.0}),)),
        Turn(update=4, success={}, takeovers=(Takeover(trial="2", source="0", settings={"x": 20.0}),)),
        Turn(update=6, success={}),
    )
    found = Population(first=first, turns=turns)
    assert lineage_of(found, "1") == [{"until": 6, "trial": "1", "settings": {"x": 1.0}}]
    assert [(each["until"], each["trial"], each["settings"]["x"]) for each in lineage_of(found, "2")] == [
        (2, "1", 1.0),
        (4, "0", 10.0),
        (6, "2", 20.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interval = 2", 'search.interval = 2 has no effect with search.scheduler = "asha"'),
        ('scheduler = "pbt"\nreduction = 2', 'search.reduction = 2 has no effect with search.scheduler = "pbt"'),
        ('scheduler = "pbt"\nquantile = 0.6', "less than or equal to 0.5"),
        ('scheduler = "pb"', "'asha' or 'pbt'"),
    ],
)
def test_a_search_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "space.toml").write_text(f"[space.grpo]\nclip_low = {{ uniform = [0.1, 0.2] }}\n[search]\n{text}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(tmp_path / "space.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "settings", "interval", "message"),
    [
        ("world_model.alignment.steps", [], 1, "world_model.alignment.steps cannot change between two updates"),
        ("grpo.clip_low", ["evaluation.every_updates=2"], 3, "search.interval = 3: real success is measured every 2"),
        ("grpo.clip_low", ["recipe.rounds=2"], 1, "so one round"),
        ("grpo.clip_low", [], 2, "no trial would ever take over .*; lower search.interval"),
        (
            "grpo.clip_low",
            ['evaluation.final_policy="best"', "evaluation.every_updates=0", "filter.max_staleness=0"],
            1,
            "interval = 1: trials first train for as many updates: evaluation.final_policy",
        ),
    ],
)
def test_what_no_population_can_search_is_refused(key, settings, interval, message):
    from cluster.sweeps.search_checks import check_population

    own = Space({key: Range(choice=(0.1, 0.2))}, SearchSection(scheduler="pbt", interval=interval))
    with pytest.raises(ConfigError, match=message):
        check_population(load_config("smoke", settings), own)


def test_what_an_earlier_sweep_depends_on_is_written_as_it_was():
    written = json.loads(Space(RANGES, SearchSection()).as_json())["search"]
    assert set(written) == {"trials", "metric", "min_updates", "reduction", "at_once", "seed"}
    written = json.loads(space().as_json())["search"]
    assert written["scheduler"] == "pbt" and "reduction" not in written and written["factors"] == [0.8, 1.2]


def test_the_page_shows_who_took_over_and_the_settings_on_the_way():
    rate = {"value": 0.6, "low": 0.5, "high": 0.7, "num": 64}
    lineage = [
        {"until": 2, "trial": "1", "settings": {"x.rate": 1e-5}},
        {"until": 4, "trial": "0", "settings": {"x.rate": 1e-3}},
    ]
    one = {"name": "0", "settings": {"x.rate": 1e-3}, "updates": 4, "success": 0.5, "final": rate, "lineage": lineage}
    page = render_sweep({"name": "demo", "metric": "m", "ranges": {"x.rate": {}}, "trials": [one]})
    assert "took over from" in page and "1 at 2" in page and "x.rate on the way" in page
    del one["lineage"]
    assert "took over from" not in render_sweep({"name": "demo", "ranges": {"x.rate": {}}, "trials": [one]})


@pytest.mark.slow
def test_a_population_trains_takes_over_and_goes_on(gated_run, tmp_path):
    """On real Ray: a turn, after which the poor trial is a branch; a second call finds nothing to do."""
    from cluster.sweeps.sweep import sweep

    out, config = tmp_path / "sweep", load_config("smoke")
    own = Space(
        {"grpo.learning_rate": Range(choice=(1e-4, 0.05))}, SearchSection(scheduler="pbt", trials=2, interval=1, seed=1)
    )
    out.mkdir()
    shutil.copytree(gated_run.folder, out / "shared")
    (out / "space.json").write_text(own.as_json())
    (out / "settings.toml").write_text(config_to_toml(config))
    found = sweep(config, own, out, resume=True, force=True)
    turns = Population.read(out, own).turns
    assert [turn.update for turn in turns] == [1, 2] and all(one["state"] == "done" for one in found["trials"])
    for each in turns[0].takeovers:
        lineage = next(one["lineage"] for one in found["trials"] if one["name"] == each.trial)
        assert lineage[0]["trial"] == each.source
    times = {path: path.stat().st_mtime for path in out.glob("trials/*/models/policy/*")}
    assert sweep(config, own, out, resume=True, force=True) == found
    assert times == {path: path.stat().st_mtime for path in out.glob("trials/*/models/policy/*")}
