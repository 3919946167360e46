"""The best version of a training run is kept with its weights, and an interruption changes nothing about it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.environment_actor import EnvironmentActor
from cluster.loop.reality import Reality
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.small_run import SETTINGS, finish, make_loop, save_models, small_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.best_policy import metric_of


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


def config_of(every_updates: int) -> Config:
    evaluation = {**SETTINGS["evaluation"], "every_updates": every_updates}
    grpo = {**SETTINGS["grpo"], "num_updates": 4}
    return Config.model_validate({**SETTINGS, "evaluation": evaluation, "grpo": grpo, "checkpoint": {"keep": 9}})


@pytest.fixture(autouse=True)
def success_by_weights(monkeypatch):
    """An untrained policy never succeeds: here success is a function of the weights alone."""

    def success(policy: Policy, count: int) -> np.ndarray:
        total = sum(float(tensor.double().sum()) for tensor in policy.state_dict().values())
        return np.arange(count) < int(abs(total) * 1e7) % (count + 1)

    def evaluate(self, weights, seeds, temperature):
        with self.borrowed(weights):
            return success(self.policy, len(seeds))

    def evaluate_saved(self, path, seeds, temperature):
        return success(load_policy(self.config, path), len(seeds))

    monkeypatch.setattr(EnvironmentActor, "evaluate", evaluate)
    monkeypatch.setattr(EnvironmentActor, "evaluate_saved", evaluate_saved)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("every_updates", [1, 0], ids=["real", "imagined"])
def test_the_best_version_is_kept_through_interruptions(models, tmp_path, every_updates, monkeypatch):
    config = config_of(every_updates)
    loop, log = make_loop(config, SerialRuntime(), models, tmp_path / "straight")
    finish(loop, tmp_path / "straight")
    key, shift = metric_of(config), 0 if every_updates else 1  # rollouts are of the weights before their update
    measured = {line["update"] - shift: line[key] for line in log.lines if key in line}
    assert sorted(measured) == list(range(5 - shift))
    record, best = loop.best.record, loop.best.path
    assert record is not None and best is not None
    assert (record.update, record.value) == max(measured.items(), key=lambda item: (item[1], -item[0]))
    if record.update:
        saved = find_checkpoint_of(tmp_path / "straight", record.update)
        for name, tensor in load_policy(config, str(best)).state_dict().items():
            assert torch.equal(tensor, saved[f"policy.{name}"])
    assert loop.best.unmeasured() == ([] if every_updates else [4])

    folder = tmp_path / "interrupted"
    loop, _ = make_loop(config, SerialRuntime(), models, folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(event) -> None:
            advance(event)
            if event.result.version.num_updates == 3:
                raise KeyboardInterrupt

        advance = loop.advance
        patch.setattr(Reality, "_ask", lambda *arguments: None)  # all that was asked is lost with the driver
        loop.advance = stop  # type: ignore[method-assign]
        finish(loop, folder)
    loop, _ = make_loop(config, SerialRuntime(), models, folder)
    finish(loop, folder)
    ours, theirs = (files(path / "checkpoints" / "best") for path in (folder, tmp_path / "straight"))
    assert json.loads(ours["best.json"]) == json.loads(theirs["best.json"]) and ours == theirs


def find_checkpoint_of(folder: Path, update: int) -> dict[str, torch.Tensor]:
    """The tensors of the learner's checkpoint after so many updates."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in (folder / "checkpoints" / f"step-{update:06d}").glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors
