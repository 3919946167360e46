"""The supervised stages as a run goes through them: stopped anywhere and gone on with, they leave the same models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.one_stage import Killed, Listener, do
from tests.support.recorded_stages import STAGES, record
from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder

STEPS = 22
CONFIG = Config.model_validate(
    {
        **SETTINGS,
        "environment": {"horizon": 24},
        "policy": {**SETTINGS["policy"], "cloning": {"steps": STEPS, "batch_size": 4}},
        "world_model": {
            **SETTINGS["world_model"],
            "pretrained": "",
            "alignment": {"steps": STEPS, "batch_size": 4, "warmup_steps": 2},
        },
        "reward": {
            **SETTINGS["reward"],
            "steps": STEPS,
            "batch_size": 8,
            "verify": {"enabled": True, "pretrained": ""},
        },
        "faults": {"backoff_s": 0.001, "max_start_failures": 3},
        "checkpoint": {"every_training_steps": 6},
    }
)
NEVER_SAVED = CONFIG.model_copy(update={"checkpoint": CONFIG.checkpoint.model_copy(update={"every_training_steps": 0})})
TRAININGS = ("policy", "world-model", "verifier", "reward-model")


class LossyRuntime(SerialRuntime):
    """Loses actors just before their answer arrives: those to the n-th calls of these methods, `("advance", 2)`."""

    def __init__(self, lost: set[tuple[str, int]]):
        super().__init__()
        self.lost = lost
        self.methods: dict[Ref, str] = {}
        self.num_answers: Counter[str] = Counter()

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Ref:
        ref = super().call(actor, method, *args, num_returns=num_returns)
        self.methods[ref] = method
        return ref

    def get(self, ref: Ref) -> Any:
        if ref in self.methods:
            method = self.methods[ref]
            self.num_answers[method] += 1
            if (method, self.num_answers[method]) in self.lost:
                raise ActorLostError("worker [17] died")
        return super().get(ref)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """A run without a break that never saved a training, and its metrics."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    with RunFolder.open(path, NEVER_SAVED) as folder:
        record(folder)
    return path, {name: do(path, name, NEVER_SAVED, Listener()) for name in STAGES}


def test_every_supervised_stage_is_gone_on_with_where_it_stopped(straight, tmp_path):
    path = tmp_path / "stopped"
    with RunFolder.open(path, CONFIG) as folder:
        record(folder)
    # Progress is reported every ten steps. Of the two world models together 40 steps, 20 of each.
    for name, stop, saved in (("policy", 20, 18), ("world-model", 40, 18), ("reward-model", 10, 6)):
        with pytest.raises(Killed):
            do(path, name, CONFIG, Listener(stop))
        with pytest.raises(UserError, match=f"{name} stopped in the middle"):
            do(path, name, CONFIG, Listener(), resume=False)
        listener = Listener()
        assert do(path, name, CONFIG, listener) == straight[1][name]
        resumed = [said for said in listener.said if "resuming from" in said]
        assert resumed and all(f"resuming from step {saved}" in said for said in resumed)
    assert files(path / "models") == files(straight[0] / "models")
    assert list((path / "checkpoints").iterdir()) == []
    curves = files(path / "curves")
    assert curves == files(straight[0] / "curves") and curves.keys() == {f"{name}.jsonl" for name in TRAININGS}


@pytest.mark.slow
def test_alignment_survives_the_loss_of_its_actors(straight, tmp_path):
    with RunFolder.open(tmp_path / "lossy", CONFIG) as folder:
        record(folder)
    lost = {("advance", 2), ("advance", 3), ("begin", 4), ("finish", 1)}
    listener = Listener()
    metrics = do(tmp_path / "lossy", "world-model", CONFIG, listener, LossyRuntime(lost))
    assert sum("worker [17] died" in said for said in listener.said) == len(lost)
    assert metrics == straight[1]["world-model"]
    for name in ("world-model", "verifier"):
        assert files(tmp_path / "lossy" / "models" / name) == files(straight[0] / "models" / name)


@pytest.mark.parametrize("config", [CONFIG, NEVER_SAVED], ids=["saved", "never saved"])
def test_actors_lost_again_and_again_without_getting_further_end_the_run(tmp_path, config):
    with RunFolder.open(tmp_path, config) as folder:
        record(folder)
    always = {("advance", n) for n in range(100)}
    with pytest.raises(RuntimeError, match=r"worker \[17\] died[\s\S]*faults.max_start_failures=3"):
        do(tmp_path, "world-model", config, Listener(), LossyRuntime(always))
