"""The account of an update: who does what, what it holds meanwhile, and how long that takes."""

from __future__ import annotations

import functools

import pytest
from rich.console import Console

from cluster.cli.plan_tables import bytes_text, flop_text, print_plan
from tests.support.small_plans import autoencoder_settings, config_of, openvla_settings
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.planning.memory import decisions_per_pass
from wmpo_ray.planning.plan import Plan, make_plan

ONE_STEP = "world_model.sampler.num_steps=1"


@functools.cache
def plan_of(*settings: str) -> Plan:
    return make_plan(config_of(*settings))


def work_of(plan: Plan) -> dict[str, float]:
    return {item.name: item.tflop for item in plan.work}


def part(plan: Plan, role: str, name: str) -> float:
    memory = next(actor.memory for actor in plan.actors if actor.name == role)
    return sum(part.bytes for part in memory.parts if part.name == name)


def test_the_plan_counts_what_one_update_does():
    config = config_of(ONE_STEP)
    plan = plan_of(ONE_STEP)
    amounts = {item.name: item.amount for item in plan.work}
    trajectories = config.rollout.group_size * config.rollout.groups_per_update
    decisions = trajectories * config.num_chunks
    assert amounts["act"] == amounts["denoise"] == amounts["learn"] == decisions
    assert amounts["judge"] == trajectories * (config.environment.horizon + 2 - config.reward.clip_length)
    assert plan.num_slots == config.rollout.groups_per_update
    assert {actor.name: actor.count for actor in plan.actors} == {"imagination": 2, "reward": 1, "learner": 1}
    policy = plan.models[0]
    (acting, _), (training, _) = policy.costs
    compared = config.grpo.minibatch_trajectories * config.num_chunks
    assert work_of(plan)["learn"] == pytest.approx(decisions * training + compared * acting)


def test_an_algorithm_on_recorded_episodes_has_a_learner_only():
    sizes = ("filtered_bc.episodes_per_update=96", "filtered_bc.minibatch_trajectories=8")
    config = config_of("algorithm.kind=filtered_bc", "filtered_bc.decisions=every_step", *sizes)
    plan = make_plan(config)
    assert [actor.name for actor in plan.actors] == ["learner"] and [work.name for work in plan.work] == ["learn"]
    assert plan.work[0].amount == 96 * config.environment.horizon, "cloning may learn from every step"
    assert decisions_per_pass(config) == 8 * config.environment.horizon
    assert plan.update_seconds(1.0) == pytest.approx(plan.tflop)
    chunks = make_plan(config_of("algorithm.kind=filtered_bc", *sizes))
    assert chunks.work[0].amount == 96 * config.episode_chunks, "or from the decisions"
    pairs = make_plan(config_of("algorithm.kind=dpo", "dpo.episodes_per_update=96"))
    assert pairs.work[0].amount == 96 * config.num_chunks


def test_work_and_memory_follow_the_configuration():
    plan = plan_of(ONE_STEP)
    steps = make_plan(config_of("world_model.sampler.num_steps=3"))
    deep = make_plan(config_of(ONE_STEP, "world_model.network.depth=6"))
    assert 2 < work_of(steps)["denoise"] / work_of(plan)["denoise"] < 3, "the conditioning frames run once"
    assert deep.models[1].num_parameters > 1.5 * plan.models[1].num_parameters
    assert part(deep, "imagination", "world model weights") > 1.5 * part(plan, "imagination", "world model weights")
    assert deep.actors[2] == plan.actors[2]
    wide = make_plan(config_of(ONE_STEP, "rollout.groups_per_request=4"))
    for name in ("conditioning cache", "denoising", "acting"):
        assert part(wide, "imagination", name) == 2 * part(plan, "imagination", name)


def test_a_simulator_costs_nothing_and_a_verifier_at_least_as_much_as_the_world():
    config = load_config("smoke", ["world_model.kind=simulator"])
    simulator = make_plan(config)
    print_plan(Console(quiet=True), simulator, config, {}, tflops=1e-3)
    assert simulator.models[1].num_parameters == 0 and work_of(simulator)["simulate"] == 0
    verified = make_plan(config_of(ONE_STEP, "reward.verify.enabled=true", "reward.verify.pretrained=embedded-b"))
    work = work_of(verified)
    assert work["verify"] > work["judge"] > 0
    names = [part.name for part in verified.actors[1].memory.parts]
    assert "world model weights" in names and "reward model weights" in names


def test_ranks_share_weights_gradients_and_moments_but_not_activations(tmp_path):
    settings = [*openvla_settings(tmp_path / "vla"), ONE_STEP]
    plans = {ranks: make_plan(config_of(*settings, f"cluster.learner_ranks={ranks}")) for ranks in (1, 4)}
    alone, shared = plans[1], plans[4]
    for name in ("weights, float32", "gradients", "optimizer state"):
        assert part(shared, "learner", name) == part(alone, "learner", name) / 4
    assert part(alone, "learner", "optimizer state") == 2 * part(alone, "learner", "gradients")
    assert part(shared, "learner", "activations") == pytest.approx(part(alone, "learner", "activations") / 4)
    assert shared.actors[2].count == 4


def test_the_learner_holds_the_activations_of_one_pass_only():
    config = config_of(ONE_STEP, "grpo.chunks_per_pass=3")
    assert decisions_per_pass(config) == 3
    whole = plan_of(ONE_STEP)
    share = 3 / decisions_per_pass(config_of(ONE_STEP))
    assert part(make_plan(config), "learner", "activations") == share * part(whole, "learner", "activations")


def test_time_falls_with_speed_and_workers_and_staleness_hides_the_shorter_half():
    plan = plan_of(ONE_STEP)
    seconds = plan.role_seconds(1e-3)
    assert sum(seconds[actor.name] * actor.workers for actor in plan.actors) == pytest.approx(plan.tflop / 1e-3)
    assert plan.update_seconds(2e-3) == pytest.approx(plan.update_seconds(1e-3) / 2)
    assert plan.update_seconds(1e-3) == pytest.approx(
        max(seconds["imagination"], seconds["reward"]) + seconds["learner"]
    )
    more = make_plan(config_of(ONE_STEP, "cluster.imagination_actors=[1,8]"))
    assert more.role_seconds(1e-3)["imagination"] == pytest.approx(seconds["imagination"] / 4)
    stale = make_plan(config_of(ONE_STEP, "filter.max_staleness=1"))
    assert stale.update_seconds(1e-3) == max(seconds.values())
    on_gpus = make_plan(config_of(ONE_STEP, "placement.imagination.gpus=0.5"))
    assert on_gpus.role_seconds(1e-3)["imagination"] == pytest.approx(2 * seconds["imagination"])


def test_roles_that_share_their_gpus_take_turns():
    shares = [f"placement.{role}.gpus=0.3" for role in ("imagination", "reward", "learner")]
    plan = plan_of(ONE_STEP, "placement.layout=collocated", *shares)
    seconds = plan.role_seconds(1e-3)
    assert plan.update_seconds(1e-3) == pytest.approx(sum(seconds.values()))
    assert seconds == plan_of(ONE_STEP).role_seconds(1e-3), "a whole GPU each, in turn"


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="no world model at embeded-a; set world_model.pretrained"):
        make_plan(config_of("world_model.pretrained=embeded-a"))
    with pytest.raises(ConfigError, match="grpo.trained_parameters='lora_' matches no parameter"):
        make_plan(config_of("grpo.trained_parameters=lora_"))


def test_the_tables_name_every_part_within_a_hundred_columns(tmp_path):
    config = config_of(*autoencoder_settings(tmp_path / "vae"), "placement.imagination.gpus=0.5")
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    plan = make_plan(config)
    print_plan(console, plan, config, {"CPU": 8.0, "GPU": 1.0}, tflops=0.5)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text.replace(str(tmp_path), "")
    for word in (*work_of(plan), "conditioning cache", "autoencoder weights", "optimizer state", "0.5 TFLOP/s each"):
        assert word in text
    untimed = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_plan(untimed, plan_of(ONE_STEP), config_of(ONE_STEP), {"CPU": 8.0, "GPU": 0.0})
    assert "expected time" not in untimed.export_text(), "nobody said what a process without a GPU does"


def test_amounts_are_read_in_the_prefix_that_fits():
    assert flop_text(5.586) == "5.59 TFLOP" and flop_text(1859.2e3) == "1.86 EFLOP"
    assert flop_text(0.158) == "158 GFLOP" and flop_text(0.9999) == "1 TFLOP"
    assert bytes_text(3 * 2**30) == "3.0 GiB" and bytes_text(2**19) == "0.5 MiB"
