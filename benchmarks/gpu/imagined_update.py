"""One imagined update end to end, through the actors and the learner of a run, on shares of one GPU.

    python -m benchmarks.gpu.imagined_update [--size full|small] [--groups 2] [--steps 10] [--serial]

Random models are saved as a run would find them; then an imagination actor, a reward actor and a GRPO learner with
adapters, each a process on Ray with its share of the GPU, do the work of one update: imagine the groups over the whole
horizon, judge every window, train, and take the new weights. The weights being random, so is every outcome: the half of
each group that was judged likelier counts as its successes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from actors.reward_actor import RewardActor
from actors.rollout_actor import RolloutActor
from benchmarks.gpu.measuring import Bench, random_frames
from benchmarks.gpu.setups import config_of, make_policy, make_reward_model, make_world_model
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.start import start_runtime
from learners.policy_learner import PolicyLearner
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.plan import make_plan

SHARES = {"imagination": 0.45, "reward": 0.1, "learner": 0.45}  # of the one GPU


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--lora-rank", type=int, default=32, help="0: all weights, which needs a smaller model")
    parser.add_argument("--serial", action="store_true", help="in this process, without Ray")


class Team(NamedTuple):
    runtime: Runtime
    imagination: Any
    reward: Any
    learner: Any

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Start a call and wait until it is done; references stay where they are."""
        refs = self.runtime.call(actor, method, *args, num_returns=num_returns)
        self.runtime.wait([refs[0] if num_returns > 1 else refs])
        return refs

    def answer(self, actor: Any, method: str, *args: Any) -> Any:
        return self.runtime.get(self.call(actor, method, *args))


def save_models(bench: Bench, config: Config) -> dict[str, str]:
    """Folders of a policy, a world model and a reward model, as the stages of a run leave them."""
    folders = {name: str(bench.folder / "models" / name) for name in ("policy", "world-model", "reward-model")}
    plain = config_of(bench.size, bench.folder)
    make_policy(plain, bench.device, torch.bfloat16).cpu().save_pretrained(folders["policy"])
    make_world_model(config, bench.device, torch.float32).to("cpu").save(folders["world-model"])
    make_reward_model(config, bench.size, torch.device("cpu")).save(folders["reward-model"])
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return folders


def assemble(bench: Bench, config: Config, folders: dict[str, str]) -> Team:
    runtime = start_runtime(bench.arguments.serial)
    gpus = SHARES if bench.device.type == "cuda" else dict.fromkeys(SHARES, 0.0)
    policy, world, reward = folders.values()
    made = {
        "imagination": (RolloutActor, config, policy, world),
        "reward": (RewardActor, config, reward, None),
        "learner": (PolicyLearner, config, policy, str(bench.folder / "checkpoints")),
    }
    actors = {
        role: runtime.spawn(cls, *args, resources=Resources(0.1, gpus[role]), name=role)
        for role, (cls, *args) in made.items()
    }
    waiting = {role: runtime.build(actor) for role, actor in actors.items()}
    for role, ref in waiting.items():
        runtime.wait([ref])
        bench.add(f"load_{role}", runtime.get(ref), "s, from the disk")
    return Team(runtime, **actors)


def requests_of(bench: Bench, config: Config) -> list[RolloutRequest]:
    facts = environment_facts(config.environment)
    frames = random_frames((bench.arguments.groups, 1, *facts.frame_shape)).numpy()
    return [
        RolloutRequest(
            i,
            (GroupRequest(0, i, i, StartState(start, facts.instructions[0]), bench.arguments.group_size, 0),),
            0,
            config.rollout.temperature,
        )
        for i, start in enumerate(frames)
    ]


def drawn_group(index: int, scores: Scores, horizon: int) -> GroupSlice:
    """The likelier half succeeds, all over the whole horizon."""
    size = len(scores.probability)
    success = np.zeros(size, bool)
    success[np.argsort(-scores.probability)[: size // 2]] = True
    return GroupSlice(((index, (0, size)),), success, np.full(size, horizon))


def run_update(bench: Bench, team: Team, config: Config) -> dict[str, float]:
    """Seconds of each part."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        started = time.perf_counter()
        result = call()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return result

    state = team.answer(team.learner, "resume")
    _, payload = team.runtime.get(team.call(team.learner, "weights", 0))
    version = timed("first weights", lambda: team.answer(team.imagination, "load_weights", payload))
    assert version == state.version
    groups, sources = [], []
    for i, request in enumerate(requests_of(bench, config)):
        wanted = RolloutRequest(request.request_id, request.groups, 0, request.temperature, version.digest)
        _, videos, trajectories = timed(
            "imagine", lambda w=wanted: team.call(team.imagination, "rollout", w, num_returns=3)
        )
        scores, _ = timed("judge", lambda v=videos: team.answer(team.reward, "score", v))
        groups.append(drawn_group(i, scores, config.environment.horizon))
        sources.append(trajectories)
    facts = UpdateFacts({}, [(0, i) for i in range(len(groups))], 0)
    refs = timed("learn", lambda: team.call(team.learner, "update", groups, facts, *sources, num_returns=3))
    result = team.runtime.get(refs[0])
    after = timed("weights", lambda: team.answer(team.imagination, "load_weights", refs[2]))
    assert after == result.version != version, "the replica holds what the learner trained"
    return seconds


def main() -> None:
    bench = Bench("imagined_update", __doc__, options)
    arguments = bench.arguments
    settings = [
        f"policy.openvla.lora_rank={arguments.lora_rank}",
        f"world_model.sampler.num_steps={arguments.steps}",
        f"rollout.groups_per_update={arguments.groups}",
        f"rollout.group_size={arguments.group_size}",
        "rollout.groups_per_request=1",
        f"grpo.minibatch_trajectories={arguments.groups * arguments.group_size}",
        "grpo.chunks_per_pass=16",
        "grpo.learning_rate=1e-3",  # so that an update shows in bfloat16
        "grpo.num_updates=2",
        "checkpoint.every_optimizer_steps=0",
        "checkpoint.every_updates=100",  # none within this one update
        f"weights.payload={'adapter' if arguments.lora_rank else 'delta'}",
        "world_model.denoiser.precision=bf16",
        f"cluster.device={bench.device.type}",
        "cluster.imagination_actors=1",
        *(f"placement.{role}.gpus={share}" for role, share in SHARES.items() if bench.device.type == "cuda"),
    ]
    config = config_of(bench.size, bench.folder, *settings)
    plan = make_plan(config)
    team = assemble(bench, config, save_models(bench, config))
    try:
        seconds = run_update(bench, team, config)
    finally:
        team.runtime.shutdown()
    for name, value in seconds.items():
        bench.add(name.replace(" ", "_"), value, "s")
    update = sum(seconds[name] for name in ("imagine", "judge", "learn", "weights"))
    bench.add("update", update, f"s, one part after the other, {arguments.groups} groups of {arguments.group_size}")
    bench.add("imagined_frames_per_s", plan.num_frames / update, "frames/s, of the whole update")
    bench.add("tflops", plan.tflop / update, f"TFLOP/s, {plan.tflop:.4g} TFLOP an update")
    bench.save()


if __name__ == "__main__":
    main()
