"""How sparse a weight update is: the share of bfloat16 weights that one GRPO update changes, and what that saves.

    python -m benchmarks.weight_delta [--run DIR]

The updates are real ones, of the demo's base policy in its own imagined world, at the paper's learning rate and at the
demo's. DIR is the folder of a demo run with every stage up to the gate done; it is only read. Without it those stages
are run first, which takes minutes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from benchmarks.prepared_run import make_run
from benchmarks.results_file import write_results
from cluster.recipes.pipeline import run_pipeline
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.policies.weight_exchange import WeightEncoder, WeightReceiver
from wmpo_ray.policies.weight_payload import WeightPayload, weights_digest
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.folder import RunFolder

PAPER_LEARNING_RATE = 5e-6
SETTINGS = WeightsConfig(payload="delta", dtype="bfloat16")
LARGE = (48, 1024)  # tensors, width: 50 million parameters

Figures = dict[str, dict[str, Any]]


class Sparsity(NamedTuple):
    """Of one training run in bfloat16; means over its updates or optimizer steps."""

    update_share: float
    step_share: float
    full_bytes: float
    delta_bytes: float


class Watch:
    """Sees the trained parameters after every optimizer step of this process."""

    def __init__(self, base: Policy, steps_per_update: int):
        self._steps_per_update, self._policy = steps_per_update, base
        self._encoder = WeightEncoder(base, SETTINGS, ())
        self._encoder.encode(0)
        self._after_step = self._after_update = _parameter_bits(list(base.parameters()))
        self.step_shares: list[float] = []
        self.update_shares: list[float] = []
        self.payloads: list[tuple[WeightPayload, WeightPayload]] = []  # (full, delta) of every update

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        now = _parameter_bits(parameters)
        self.step_shares.append(float((now != self._after_step).mean()))
        self._after_step = now
        if len(self.step_shares) % self._steps_per_update == 0:
            self.update_shares.append(float((now != self._after_update).mean()))
            self._after_update = now
            with torch.no_grad():
                for ours, trained in zip(self._policy.parameters(), parameters, strict=True):
                    ours.copy_(trained)
            _, full, delta = self._encoder.encode(len(self.payloads) + 1)
            assert delta is not None
            self.payloads.append((full, delta))

    def result(self) -> Sparsity:
        full, delta = (float(np.mean([pair[i].nbytes for pair in self.payloads])) for i in range(2))
        return Sparsity(float(np.mean(self.update_shares)), float(np.mean(self.step_shares)), full, delta)


def train_and_watch(run: Path, learning_rate: float, num_updates: int) -> Sparsity:
    """Train a copy of a run's base policy and compare the weights after every step; `run` is only read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        config = _with_learning_rate(read_config_json(run / "config.json"), learning_rate, num_updates)
        (copy / "config.json").write_text(config_to_json(config))
        batch = config.rollout.groups_per_update * config.rollout.group_size
        steps = -(-batch // config.grpo.minibatch_trajectories) * config.grpo.num_epochs
        watch = Watch(load_policy(config, str(copy / "models" / "base-policy")), steps)
        handle = register_optimizer_step_post_hook(watch.after_step)
        try:
            run_pipeline(config, copy, serial=True, only="optimize", force=True)
        finally:
            handle.remove()
    assert len(watch.payloads) == num_updates, "a step was skipped: the updates cannot be told apart"
    return watch.result()


def measure(run: Path, num_updates: int = 2) -> Figures:
    """All figures; `run` is the folder of a demo run that has passed the gate."""
    demo_rate = read_config_json(run / "config.json").grpo.learning_rate
    paper = train_and_watch(run, PAPER_LEARNING_RATE, num_updates)
    demo = train_and_watch(run, demo_rate, num_updates)
    return {
        "delta_share": _figure(paper.update_share, f"of bf16 weights, one update at lr {PAPER_LEARNING_RATE:g}"),
        "delta_share_per_step": _figure(paper.step_share, f"one optimizer step at lr {PAPER_LEARNING_RATE:g}"),
        "delta_share_demo_lr": _figure(demo.update_share, f"of bf16 weights, one update at lr {demo_rate:g}"),
        "delta_share_per_step_demo_lr": _figure(demo.step_share, f"one optimizer step at lr {demo_rate:g}"),
        "full_bytes": _figure(paper.full_bytes, "bytes, bf16"),
        "delta_bytes": _figure(paper.delta_bytes, f"bytes, one update at lr {PAPER_LEARNING_RATE:g}"),
        "delta_ratio": _figure(paper.delta_bytes / paper.full_bytes, "delta / full, bytes"),
        "delta_ratio_demo_lr": _figure(demo.delta_bytes / demo.full_bytes, "delta / full, bytes"),
        **time_large_state(paper.update_share),
    }


def time_large_state(share: float, repetitions: int = 3) -> Figures:
    """Seconds to encode and apply a state of 50 million bfloat16 parameters of which `share` changed, one thread."""
    torch.set_num_threads(1)
    count, width = LARGE
    learner, replica = _large_policy(count, width), _large_policy(count, width)
    full_encoder = WeightEncoder(learner, WeightsConfig(dtype="bfloat16"), ())
    delta_encoder, receiver = WeightEncoder(learner, SETTINGS, ()), WeightReceiver(replica)
    receiver.load(delta_encoder.encode(0)[1])
    seconds: dict[str, list[float]] = {}
    for update in range(1, repetitions + 1):
        _change(learner, share, update)
        _timed(seconds, "encode_full", full_encoder.encode, update)
        version, full, delta = _timed(seconds, "encode_delta", delta_encoder.encode, update)
        held = _timed(seconds, "apply_delta", receiver.load, delta)
        assert held == version == _timed(seconds, "apply_full", receiver.load, full)
        _timed(seconds, "digest", weights_digest, replica.state_dict(), "bfloat16")
    unit = f"s, {count * width * width / 1e6:.0f}M bf16 parameters, {share:.1%} changed, 1 thread, median, "
    what = dict.fromkeys(seconds, "with the digest") | {"digest": "alone"}
    what["encode_delta"] += "; the full payload comes with it"
    times = {f"large_{key}_s": _figure(float(np.median(values)), unit + what[key]) for key, values in seconds.items()}
    return {
        **times,
        "large_full_bytes": _figure(full.nbytes, "bytes"),
        "large_delta_bytes": _figure(delta.nbytes, "bytes"),
    }


def _with_learning_rate(config: Config, learning_rate: float, num_updates: int) -> Config:
    grpo = config.grpo.model_copy(update={"learning_rate": learning_rate, "num_updates": num_updates})
    evaluation = config.evaluation.model_copy(update={"every_updates": 0})
    return config.model_copy(update={"grpo": grpo, "evaluation": evaluation})


def _parameter_bits(parameters: list[Tensor]) -> np.ndarray:
    """All values [n] in bfloat16, as uint16."""
    flat = torch.cat([parameter.detach().flatten().bfloat16() for parameter in parameters])
    return flat.view(torch.int16).numpy().view(np.uint16)


def _large_policy(count: int, width: int) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(width, width, generator=generator).mul_(0.02).bfloat16() for _ in range(count)]
    return nn.ParameterList(nn.Parameter(weight) for weight in weights)


def _change(policy: nn.Module, share: float, seed: int) -> None:
    """Move `share` of the elements to the next bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        moved = torch.rand(parameter.shape, generator=generator) < share
        parameter.data.view(torch.int16).add_(moved)


def _timed(seconds: dict[str, list[float]], key: str, work: Callable[..., Any], *args: Any) -> Any:
    started = time.perf_counter()
    result = work(*args)
    seconds.setdefault(key, []).append(time.perf_counter() - started)
    return result


def _figure(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a demo run that has passed the gate; it is only read")
    parser.add_argument("--updates", type=int, default=2, help="updates at each learning rate")
    args = parser.parse_args()
    if args.run is not None:
        RunFolder(args.run).metrics("gate")  # says what is missing
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args.run or make_run(Path(folder) / "demo"), args.updates)
    path = write_results("weight_delta", figures, " ".join(["python -m benchmarks.weight_delta", *sys.argv[1:]]))
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:.4g} {figure['unit']}")
    print(path)


if __name__ == "__main__":
    main()
