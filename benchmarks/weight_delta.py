"""How sparse a weight update is: the share of bfloat16 weights that one GRPO update changes, and what that saves.

The figures stand in benchmarks/results/coordinator.json.

    python -m benchmarks.weight_delta [--run DIR]

The updates are real ones, of the demo's base policy in its own imagined world, at the paper's learning rate and at the
demo's. DIR is the folder of a demo run with every stage up to the gate done; it is only read. Without it those stages
are run first, which takes minutes.
"""

from __future__ import annotations

import argparse
import shutil
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
from benchmarks.results_file import update_results
from cluster.recipes.pipeline import run_pipeline
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.policies.weight_changes import decode_changes, encode_changes
from wmpo_ray.policies.weight_exchange import WeightEncoder, WeightReceiver
from wmpo_ray.policies.weight_payload import WeightPayload, weights_digest
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.folder import RunFolder

PAPER_LEARNING_RATE = 5e-6
SETTINGS = WeightsConfig(payload="delta", dtype="bfloat16")
FIGURES = ("delta_", "large_", "full_bytes")  # how the names of all begin
LARGE = (48, 1024)  # tensors, width: 50 million parameters

Figures = dict[str, dict[str, Any]]


class Sparsity(NamedTuple):
    """Of one training run in bfloat16; means over its updates or optimizer steps."""

    update_share: float
    step_share: float
    full_bytes: float
    delta_bytes: float
    step_bytes: float  # of a delta after every optimizer step


class Watch:
    """Sees the trained parameters after every optimizer step of this process."""

    def __init__(self, base: Policy, steps_per_update: int):
        self._steps_per_update, self._policy = steps_per_update, base
        self._encoder, self._step_encoder = (WeightEncoder(base, SETTINGS, ()) for _ in range(2))
        self._encoder.encode(0), self._step_encoder.encode(0)
        self._after_step = self._after_update = _parameter_bits(list(base.parameters()))
        self.step_shares: list[float] = []
        self.update_shares: list[float] = []
        self.step_bytes: list[int] = []
        self.payloads: list[tuple[WeightPayload, WeightPayload]] = []  # (full, delta) of every update

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        now = _parameter_bits(parameters)
        self.step_shares.append(float((now != self._after_step).mean()))
        self._after_step = now
        with torch.no_grad():
            for ours, trained in zip(self._policy.parameters(), parameters, strict=True):
                ours.copy_(trained)
        _, _, delta = self._step_encoder.encode(len(self.step_shares))
        assert delta is not None
        self.step_bytes.append(delta.nbytes)
        if len(self.step_shares) % self._steps_per_update == 0:
            self.update_shares.append(float((now != self._after_update).mean()))
            self._after_update = now
            _, full, delta = self._encoder.encode(len(self.payloads) + 1)
            assert delta is not None
            self.payloads.append((full, delta))

    def result(self) -> Sparsity:
        full, delta = (float(np.mean([pair[i].nbytes for pair in self.payloads])) for i in range(2))
        means = (float(np.mean(values)) for values in (self.update_shares, self.step_shares))
        return Sparsity(*means, full, delta, float(np.mean(self.step_bytes)))


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
    update = f"one update at lr {PAPER_LEARNING_RATE:g}"
    return {
        "delta_share": _figure(paper.update_share, f"of bf16 weights, {update}"),
        "delta_share_per_step": _figure(paper.step_share, f"one optimizer step at lr {PAPER_LEARNING_RATE:g}"),
        "delta_share_demo_lr": _figure(demo.update_share, f"of bf16 weights, one update at lr {demo_rate:g}"),
        "delta_share_per_step_demo_lr": _figure(demo.step_share, f"one optimizer step at lr {demo_rate:g}"),
        "full_bytes": _figure(paper.full_bytes, "bytes, bf16"),
        "delta_bytes": _figure(paper.delta_bytes, f"bytes, {update}"),
        "delta_share_bytes": _figure(paper.delta_bytes / paper.full_bytes, f"delta / full, bytes, {update}"),
        "delta_share_bytes_per_step": _figure(paper.step_bytes / paper.full_bytes, "the same, one optimizer step"),
        "delta_share_bytes_demo_lr": _figure(demo.delta_bytes / demo.full_bytes, "delta / full, bytes"),
        "delta_share_bytes_per_step_demo_lr": _figure(demo.step_bytes / demo.full_bytes, "one optimizer step"),
        **time_large_state(paper.update_share),
    }


def time_large_state(share: float, repetitions: int = 3) -> Figures:
    """Processor seconds to encode and apply a state of 50 million bfloat16 parameters of which `share` changed."""
    torch.set_num_threads(1)
    count, width = LARGE
    learner, replica = _large_policy(count, width), _large_policy(count, width)
    full_encoder = WeightEncoder(learner, WeightsConfig(dtype="bfloat16"), ())
    delta_encoder, receiver = WeightEncoder(learner, SETTINGS, ()), WeightReceiver(replica)
    before = delta_encoder.encode(0)[1]
    receiver.load(before)
    seconds: dict[str, list[float]] = {}
    for update in range(1, repetitions + 1):
        _change(learner, share, update)
        _timed(seconds, "encode_full", full_encoder.encode, update)
        version, full, delta = _timed(seconds, "encode_delta", delta_encoder.encode, update)
        codes = _timed(seconds, "encode_changes", _encode_all, before, full)
        _timed(seconds, "decode_changes", _decode_all, codes, full)
        held = _timed(seconds, "apply_delta", receiver.load, delta)
        assert held == version == _timed(seconds, "apply_full", receiver.load, full)
        _timed(seconds, "digest", weights_digest, replica.state_dict(), "bfloat16")
        before = full
    return _large_figures({key: float(np.median(values)) for key, values in seconds.items()}, share, full, delta)


def _large_figures(seconds: dict[str, float], share: float, full: WeightPayload, delta: WeightPayload) -> Figures:
    count, width = LARGE
    unit = f"s of processor time, {count * width * width / 1e6:.0f}M bf16 parameters, {share:.1%} changed, median, "
    what = dict.fromkeys(seconds, "with the digest") | dict.fromkeys(("encode_changes", "decode_changes"), "alone")
    what |= {"digest": "alone", "encode_delta": "with the digest; the full payload comes with it"}
    times = {f"large_{key}_s": _figure(value, unit + what[key]) for key, value in seconds.items()}
    coding_s = seconds["encode_changes"] + seconds["decode_changes"]
    rates = {
        "delta_encode_mb_per_s": _figure(full.nbytes / seconds["encode_changes"] / 1e6, "MB of weights, one thread"),
        "delta_decode_mb_per_s": _figure(full.nbytes / seconds["decode_changes"] / 1e6, "MB of weights, one thread"),
        "delta_pays_below_mb_per_s": _figure(
            (full.nbytes - delta.nbytes) / coding_s / 1e6,
            "MB/s of the slowest link: what the code saves there is more than it costs, one thread at either end",
        ),
    }
    sizes = {"large_full_bytes": _figure(full.nbytes, "bytes"), "large_delta_bytes": _figure(delta.nbytes, "bytes")}
    return {**times, **rates, **sizes}


def _encode_all(before: WeightPayload, after: WeightPayload) -> list[np.ndarray]:
    return [encode_changes(before.tensors[name].bits, tensor.bits) for name, tensor in after.tensors.items()]


def _decode_all(codes: list[np.ndarray], full: WeightPayload) -> None:
    for code, tensor in zip(codes, full.tensors.values(), strict=True):
        decode_changes(code, tensor.bits.size, tensor.bits.itemsize)


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
    """Move `share` of the elements, five of six to a neighbouring bfloat16, the others by up to 32 of them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        chance, far, size = (torch.rand(parameter.shape, generator=generator) for _ in range(3))
        step = torch.where(far < 1 / 6, 2 + (size * 31).int(), 1) * torch.where(size * 1000 % 1 < 0.5, 1, -1)
        parameter.data.view(torch.int16).add_(torch.where(chance < share, step, 0).to(torch.int16))


def _timed(seconds: dict[str, list[float]], key: str, work: Callable[..., Any], *args: Any) -> Any:
    started = time.process_time()
    result = work(*args)
    seconds.setdefault(key, []).append(time.process_time() - started)
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
    path = update_results(
        "coordinator", FIGURES, figures, f"python -m benchmarks.weight_delta --updates {args.updates}"
    )
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:.4g} {figure['unit']}")
    print(path)


if __name__ == "__main__":
    main()
