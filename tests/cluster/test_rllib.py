"""RLlib's algorithms in the imagined world of a run, on real Ray: one start for all of them."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.columns import Columns

from cluster.host.security import prepare_ray
from cluster.rllib.imagined_training import Plan, check, configured, parsed, spent_chunks
from cluster.rllib.policy_module import RECORD, PolicyModule
from cluster.rllib.run_rllib import train_in_imagination
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.imagined_run import imagined_environments
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.outcomes import Outcomes


@pytest.fixture(scope="module")
def run(gated_run):
    """A copy of a run up to the gate."""
    return gated_run.copy(gated_run.folder.with_name("for-rllib"))


@pytest.fixture(scope="module")
def on_ray():
    prepare_ray("")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def plan_of(run, algorithm: str = "PPO", **settings) -> Plan:
    small = {"num_chunks": 64, "num_envs": 8, "batch": 64}
    return Plan(run, load_config("smoke"), algorithm, **{**small, **settings})


def module_of(run) -> tuple[PolicyModule, dict[str, torch.Tensor]]:
    plan = plan_of(run)
    env = imagined_environments(run, 4)
    spec = configured(plan).rl_module_spec
    module = PolicyModule(
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        model_config=spec.model_config,
    )
    seen, _ = env.reset(seed=0)
    return module, {name: torch.from_numpy(values) for name, values in seen.items()}


def test_the_module_judges_what_it_decided_as_the_policy_does(run):
    """Log-probabilities of sampling and of training agree, drops nothing out, and have a gradient."""
    module, seen = module_of(run)
    torch.manual_seed(0)
    made = module.forward_exploration({Columns.OBS: seen})
    assert made[Columns.ACTIONS].shape == (4, 4, 3)
    batch = {Columns.OBS: seen, **{name: values for name, values in made.items() if name.startswith(RECORD)}}
    trained = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    torch.testing.assert_close(trained, made[Columns.ACTION_DIST_INPUTS], atol=1e-5, rtol=1e-5)
    distribution = module.get_train_action_dist_cls().from_logits(trained)
    torch.testing.assert_close(distribution.logp(made[Columns.ACTIONS]), made[Columns.ACTION_LOGP], atol=1e-4, rtol=0)
    distribution.logp(None).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.policy.parameters())
    module.make_target_networks()
    before = module.forward_target(batch)["target_network_action_dist_inputs"]
    torch.testing.assert_close(before, trained.detach())
    assert module.compute_values(batch).shape == (4,)


def test_gymnasium_makes_the_world_of_a_run(run):
    name = "wmpo_ray.imagined_run:wmpo_ray/Imagined-v0"
    one = gymnasium.make(name, run=str(run), disable_env_checker=False)
    several = gymnasium.make_vec(name, 2, vectorization_mode="vector_entry_point", run=str(run), perfect=True)
    image, _ = one.reset(seed=0)
    images, _ = several.reset(seed=0)
    assert np.array_equal(image["main"], images["main"][0]), "both begin where the run's episodes began"
    assert one.step(one.action_space.sample())[1] in (0.0, 1.0)
    assert several.step(several.action_space.sample())[1].shape == (2,)


def test_episodes_begin_from_no_task_that_the_gate_has_left_out(run, gated_run, tmp_path):
    copy = gated_run.copy(tmp_path / "run")
    config = load_config("smoke", ['environment.task_names=["pocket","push"]'])
    summary = json.loads((copy / "summary.json").read_text())

    def environments_without(task: str):
        summary["stages"]["gate"]["metrics"]["left_out"] = {task: "f1 0.500 < gate.min_f1=0.85"}
        (copy / "summary.json").write_text(json.dumps(summary))
        return imagined_environments(copy, 2, config=config)

    assert environments_without("push").instructions == imagined_environments(run, 2).instructions
    with pytest.raises(UserError, match="no episode was collected of the tasks that the gate has not left out"):
        environments_without("pocket")


@pytest.mark.parametrize(
    "algorithm", ["PPO", *(pytest.param(name, marks=pytest.mark.slow) for name in ("APPO", "IMPALA"))]
)
def test_a_run_has_another_learner_beside_its_own(run, on_ray, algorithm):
    plan = plan_of(run, algorithm, perfect=algorithm == "APPO")
    result = train_in_imagination(plan, num_starts=4)
    folder = run / "rllib" / plan.label
    assert folder.is_dir() and json.loads((folder / "result.json").read_text())["algorithm"] == algorithm
    assert result["chunks"] >= 64 and result["frames"] == 4 * result["chunks"] and result["success"]["num"] == 4
    outcomes = Outcomes.model_validate_json((folder / "outcomes.json").read_text())
    assert outcomes.starts[0] == 3_000_000_000 and outcomes.sampling_key == [0, "evaluate"]
    page = (run / "report" / "index.html").read_text()
    assert "Other learners in the same world" in page and plan.label in page
    if algorithm == "PPO":
        with pytest.raises(UserError, match=r"rllib/ppo holds an earlier training; choose another --name"):
            check(plan)
        check(plan_of(run, name="ppo 2"))
        config = load_config("smoke")
        before, after = (load_policy(config, str(path)) for path in (plan.base_policy, folder / "policy"))
        moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
        assert any(moved), "the policy did not learn"


def test_mistakes_are_named_before_anything_starts(run, tmp_path):
    with pytest.raises(UserError, match="--algorithm DQN: known are PPO, APPO, IMPALA"):
        check(plan_of(run, "DQN"))
    with pytest.raises(UserError, match="no policy at .*base-policy; run the stages"):
        check(plan_of(tmp_path))
    with pytest.raises(UserError, match=r"--name ../up: a folder is called after it"):
        check(plan_of(run, name="../up"))
    with pytest.raises(UserError, match="entropy_coeff=0.01: a policy gives log-probabilities"):
        check(plan_of(run, training={"entropy_coeff": 0.01}))
    with pytest.raises(UserError, match="--training for PPO: .*learning_rat"):
        configured(plan_of(run, training={"learning_rat": 0.01}))
    with pytest.raises(UserError, match="--training for PPO: "):
        configured(plan_of(run, training={"minibatch_size": None}))
    for wrong in ("lr", "lr=NaN", "lr=" + "[" * 100_000):
        with pytest.raises(UserError, match='--training "lr.*: expected key=value') as caught:
            parsed([wrong])
        assert len(str(caught.value)) < 200
    with pytest.raises(UserError, match="--training lr is given twice"):
        parsed(["lr=1", "lr=2"])
    assert parsed(["lr=3e-4", "use_critic=true"]) == {"lr": 3e-4, "use_critic": True}
    config = load_config("smoke")
    assert spent_chunks(tmp_path, config) == 2 * 16 * 8, "what a run that has not been optimized would spend"
