"""Trains the base policy of a run by an algorithm of RLlib in the run's imagined world, and evaluates it in reality.

Everything that the run has made stays as it is; what this leaves stands in `rllib/LABEL` of the run's folder.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune import register_env

from cluster.host.ray_private import DEPRECATIONS, trainables_in
from cluster.rllib.policy_module import PolicyModule
from learners.policy_files import save_policy
from learners.sharding import ALONE
from wmpo_ray.config.run import NAME, NAME_RULE, Config
from wmpo_ray.core.errors import UserError, short
from wmpo_ray.core.section import shown
from wmpo_ray.environments.imagined import ImaginedVectorEnv
from wmpo_ray.imagined_run import imagined_environments
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.other_learners import FOLDER
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

ENVIRONMENT = "wmpo-imagined"
ALGORITHMS: Mapping[str, type[AlgorithmConfig]] = {"PPO": PPOConfig, "APPO": APPOConfig, "IMPALA": IMPALAConfig}
# Beside RLlib's own: what the embedded task was tried with. Chunks per batch, and a discount per chunk.
TRAINING: dict[str, Any] = {"lr": 1e-4, "gamma": 0.99, "entropy_coeff": 0.0, "grad_clip": 1.0}
OF_PPO = {"num_epochs": 1, "minibatch_size": 256, "clip_param": 0.2, "use_kl_loss": False, "vf_loss_coeff": 0.5}
OF_OTHERS = {"vf_loss_coeff": 0.5}
FIXED = ("entropy_coeff", "use_kl_loss", "kl_coeff")  # need a distribution, where a decision is all that there is


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long."""

    run: Path
    config: Config
    algorithm: str
    num_chunks: int  # imagined in all, by all environments
    num_envs: int = 64  # side by side, of each runner
    num_runners: int = 0  # processes that imagine; 0: this one
    batch: int = 1024  # chunks of an update
    perfect: bool = False  # in the simulator, as the control
    training: dict[str, Any] = field(default_factory=dict)  # settings of the algorithm, by RLlib's names
    name: str = ""  # of its folder; "": after the algorithm

    @property
    def label(self) -> str:
        return self.name or self.algorithm.lower() + ("-perfect" if self.perfect else "")

    @property
    def folder(self) -> Path:
        """Where it leaves its policy and its result."""
        return self.run / FOLDER / self.label

    @property
    def base_policy(self) -> Path:
        return self.run / "models" / "base-policy"


def imagined(context: Mapping[str, Any]) -> ImaginedVectorEnv:
    """The environments of a runner: what RLlib calls for `wmpo-imagined`, with `run`, `config`, `perfect`, `num_envs`."""
    config = Config.model_validate_json(context["config"]) if context.get("config") else None
    return imagined_environments(
        context["run"], context.get("num_envs", 1), bool(context.get("perfect", False)), config=config
    )


def register() -> None:
    """Make `wmpo-imagined` known to RLlib and Tune; `env_config={"run": FOLDER}` is enough."""
    register_env(ENVIRONMENT, imagined)


def configured(plan: Plan) -> AlgorithmConfig:
    """RLlib's configuration. Raises UserError for settings that the algorithm does not have."""
    instructions = imagined_environments(plan.run, 1, plan.perfect, config=plan.config).instructions
    settings, text = plan.config, plan.config.model_dump_json()
    place, learner = settings.placement.imagination, settings.placement.learner
    made = (
        ALGORITHMS[plan.algorithm]()
        .framework("torch")
        .environment(
            ENVIRONMENT,
            env_config={"run": str(plan.run.resolve()), "config": text, "perfect": plan.perfect},
            normalize_actions=False,
            clip_actions=False,
        )
        .env_runners(
            num_env_runners=plan.num_runners,
            num_envs_per_env_runner=plan.num_envs,
            num_cpus_per_env_runner=place.cpus,
            num_gpus_per_env_runner=place.gpus,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=max(1, plan.batch // (plan.num_envs * max(1, plan.num_runners))),
        )
        .learners(num_learners=0, num_gpus_per_learner=1 if learner.gpus else 0)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=PolicyModule,
                model_config={"config": text, "policy": str(plan.base_policy.resolve()), "instructions": instructions},
            )
        )
        .debugging(seed=settings.seed, log_level="ERROR")
    )
    own = OF_PPO if plan.algorithm == "PPO" else OF_OTHERS
    chosen = {**TRAINING, **own, "train_batch_size_per_learner": plan.batch, **plan.training}
    try:
        if "minibatch_size" in chosen:
            chosen["minibatch_size"] = min(chosen["minibatch_size"], chosen["train_batch_size_per_learner"])
        made.training(**chosen).validate()
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--training for {plan.algorithm}: {short(error)}") from error
    return made


def check(plan: Plan) -> None:
    """Raises UserError for what cannot be trained, before anything is started."""
    if plan.algorithm not in ALGORITHMS:
        raise UserError(f"--algorithm {plan.algorithm}: known are {', '.join(ALGORITHMS)}")
    if not plan.base_policy.is_dir():
        raise UserError(f"no policy at {plan.base_policy}; run the stages up to reward-model first")
    if not NAME.fullmatch(plan.label):
        raise UserError(f"--name {plan.label}: {NAME_RULE}")
    for key in FIXED:
        if plan.training.get(key):
            raise UserError(
                f"--training {key}={shown(plan.training[key])}: a policy gives log-probabilities of what it decided, and "
                "no distribution of all that it might have; leave it out"
            )
    if plan.config.policy.trained_parameters:
        raise UserError("policy.trained_parameters: with RLlib all parameters of the policy are trained; remove it")
    if plan.folder.exists():
        raise UserError(f"{plan.folder} holds an earlier training; choose another --name, or remove the folder")


def spent_chunks(run: Path, config: Config) -> int:
    """Chunks that the stage `optimize` of a run imagined, or would: what others may spend beside it."""
    lines = JsonlTracker.read(run)
    counted = sum(int(line.get("work/imagined_chunks") or 0) for line in lines)
    rolled = sum(int(line.get("imagined/trajectories") or 0) for line in lines) * config.num_chunks
    return counted or rolled or config.training.num_updates * config.trajectories_per_update * config.num_chunks


def train(
    plan: Plan, progress: Callable[[int, dict[str, float]], None]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(facts, weights of the policy) of training until the chunks are spent; Ray must be running.

    `progress` gets the chunks so far and `imagined_success`, the share of the latest episodes.
    """
    register()
    deterministic = torch.are_deterministic_algorithms_enabled()  # RLlib asks for them where there is a seed, for good
    for name in ("ray.rllib", "ray.tune", DEPRECATIONS):
        logging.getLogger(name).setLevel(logging.ERROR)  # of its own ways of doing things, users of ours know nothing
    with tempfile.TemporaryDirectory(prefix="wmpo-rllib-") as scratch, trainables_in(scratch):
        algorithm: Algorithm = configured(plan).build_algo()  # its folder stays empty: nothing is saved by it
    curve: list[list[float]] = []
    done, started = 0, time.monotonic()
    try:
        while done < plan.num_chunks:
            result = algorithm.train().get("env_runners", {})
            done = int(result.get("num_env_steps_sampled_lifetime", done))
            if (success := float(result.get("episode_return_mean", math.nan))) == success:
                curve.append([done, success])
                progress(min(done, plan.num_chunks), {"imagined_success": success})
        weights = algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
    finally:
        algorithm.stop()
        torch.use_deterministic_algorithms(deterministic)
    facts = {
        "algorithm": plan.algorithm,
        "world": "simulator" if plan.perfect else "imagination",
        "chunks": done,
        "frames": done * plan.config.rollout.chunk_length,
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve,
        "settings": {"num_envs": plan.num_envs, "batch": plan.batch, "num_runners": plan.num_runners, **plan.training},
    }
    prefix = "policy."
    own = {name.removeprefix(prefix): values for name, values in weights.items() if name.startswith(prefix)}
    return facts, {name: torch.as_tensor(values) for name, values in own.items()}


def save_weights(plan: Plan, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """The policy in a folder, as its class saves it."""
    policy: Any = load_policy(plan.config, str(plan.base_policy), training=True, device="cpu")
    policy.load_state_dict(dict(weights))
    save_policy(policy, path, ALONE, lambda: policy)


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` each, values as JSON. Raises UserError for anything else, and for a key that is given twice."""
    found: dict[str, Any] = {}
    for text in settings:
        key, separator, value = text.partition("=")
        try:
            content = json.loads(value, parse_constant=_refused)
        except (ValueError, RecursionError):  # also of a number that is not finite
            separator = ""
        if not (separator and key.isidentifier()):
            raise UserError(f"--training {shown(text)}: expected key=value, a finite number or true, such as lr=3e-4")
        if key in found:
            raise UserError(f"--training {key} is given twice; leave one of them out")
        found[key] = content
    return found


def _refused(constant: str) -> Any:
    raise ValueError(constant)
