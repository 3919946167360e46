"""Stages that record and evaluate, interrupted: they go on in their middle, and leave the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.recipes.recipe_table import steps_of
from cluster.recipes.run_plan import Action, plan_run
from cluster.recording import recorder
from tests.support.one_stage import Killed, Listener, do
from tests.support.recordings import RECORDING, batches_made, begin, faulty_recorder, recorded
from tests.support.sabotage import Plan
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder


class Interrupted(Listener):
    """Ends everything as soon as one more batch is done."""

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(done: int, metrics: dict[str, float] | None = None) -> None:
            if metrics is not None:
                raise Killed

        yield advance


@pytest.mark.parametrize(("stage", "num_batches"), [("demos", 4), ("collect", 3 + 2), ("evaluate", 2 * 5)])
def test_a_stage_goes_on_in_its_middle(recorded_run, tmp_path, monkeypatch, stage, num_batches):
    """Killed after every batch, and so between its files too: no batch is made twice."""
    path, plan = begin(tmp_path / "run"), Plan(tmp_path / "plan")
    monkeypatch.setattr(recorder, "RecordingActor", faulty_recorder(plan))
    for _ in range(num_batches):
        with pytest.raises(Killed):
            do(path, stage, RECORDING, Interrupted())
    with pytest.raises(UserError, match=f"{stage} stopped in the middle"):
        do(path, stage, RECORDING, Listener(), resume=False)
    do(path, stage, RECORDING, Listener())
    assert recorded(path) and recorded(path).items() <= recorded(recorded_run).items()
    assert len(batches_made(plan)) == num_batches
    assert not list(path.glob("checkpoints/*"))


@pytest.mark.parametrize("damage", [b"", b"PAR1"])
def test_a_damaged_part_is_made_again(recorded_run, tmp_path, monkeypatch, damage):
    path, plan = begin(tmp_path / "run"), Plan(tmp_path / "plan")
    monkeypatch.setattr(recorder, "RecordingActor", faulty_recorder(plan))
    for _ in range(2):
        with pytest.raises(Killed):
            do(path, "collect", RECORDING, Interrupted())
    part = path / "checkpoints" / "episodes-collect" / "000000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 255
    part.write_bytes(damage or bytes(data))
    do(path, "collect", RECORDING, Listener())
    assert recorded(path).items() <= recorded(recorded_run).items()
    assert len(batches_made(plan)) == 6 and len(set(batches_made(plan))) == 5


def test_other_settings_take_nothing_from_an_interrupted_stage(tmp_path, monkeypatch):
    path = begin(tmp_path / "run")
    with pytest.raises(Killed):
        do(path, "collect", RECORDING, Interrupted())
    other = RECORDING.model_copy(update={"collect": RECORDING.collect.model_copy(update={"temperature": 0.5})})
    with RunFolder.open(path, RECORDING) as folder:
        actions = {each.label: each.action for each in plan_run(folder, other, steps_of(other))}
    assert actions["collect"] is Action.REDO
