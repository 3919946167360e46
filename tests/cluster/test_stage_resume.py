"""The supervised stages as a run goes through them: stopped anywhere and gone on with, they leave the same models."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.events.event_log import LOGGER
from cluster.events.progress import Reporter
from cluster.recipes.context import RunContext
from cluster.recipes.pipeline import run_step
from cluster.recipes.recipe_table import steps_of
from cluster.recipes.run_plan import check_resume, plan_run
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.recorded_stages import STAGES, record
from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process
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


class Killed(BaseException):
    """What nothing in a run survives."""


class Listener(Reporter):
    """Keeps what is said; `stop` ends everything when a bar comes so far."""

    def __init__(self, stop: int | None = None):
        super().__init__()
        self.said: list[str] = []
        self.stop = stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self.said.append(record.getMessage())
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        try:
            yield
        finally:
            LOGGER.removeHandler(handler)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(done: int, metrics: dict[str, float] | None = None) -> None:
            if done == self.stop:
                raise Killed

        yield advance


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


def do(
    path: Path, name: str, config: Config, listener: Listener, runtime: SerialRuntime | None = None, resume: bool = True
) -> dict:
    """One stage of the run in `path`, up to its place in the summary."""
    configure_process(config.cluster.threads_per_process)
    with RunFolder.open(path, config) as folder, listener.listening():
        context = RunContext(config, folder, listener, lambda: runtime or SerialRuntime(), force=False)
        plan = plan_run(folder, config, steps_of(config))
        (planned,) = (each for each in plan if each.label == name)
        check_resume(folder, [planned], resume, redo=False)
        folder.accept(config)
        run_step(context, planned, plan, again=False)
        return {key: value for key, value in folder.metrics(name).items() if key != "seconds"}


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
