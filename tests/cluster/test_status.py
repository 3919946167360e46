"""`status.json`: whole at any moment, never older than a second while the run lives."""

from __future__ import annotations

import json
import logging
import time

from cluster.events.status import FILE_NAME, NUM_FAULTS, Status


def read(folder) -> dict:
    return json.loads((folder / FILE_NAME).read_text())


def test_it_is_whole_whenever_it_is_read_and_young_while_the_run_lives(tmp_path):
    status = Status(tmp_path, job="raysubmit_1", stages=["demos"])
    while not (tmp_path / FILE_NAME).exists():
        time.sleep(0.01)
    ended = time.monotonic() + 2.5
    while time.monotonic() < ended:
        status.update(workers=[{"name": f"imagination-{i}"} for i in range(300)])
        assert time.time() - read(tmp_path)["time"] < 2.0
    status.close("done")
    last = read(tmp_path)
    assert last["state"] == "done" and last["job"] == "raysubmit_1" and len(last["workers"]) == 300
    time.sleep(1.2)
    assert read(tmp_path) == last, "nobody writes after the end"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_stage_forgets_what_the_one_before_told_but_not_its_faults(tmp_path):
    status = Status(tmp_path)
    status.progress(3, 10, {"loss": 1.0})
    for number in range(NUM_FAULTS + 2):
        status.fault(logging.makeLogRecord({"msg": f"fault {number}", "event": "worker.lost"}))
    status.begin_stage("optimize", ["demos", "policy"])
    status.close("failed")
    last = read(tmp_path)
    assert "progress" not in last and last["stage"] == "optimize" and last["stages_done"] == ["demos", "policy"]
    assert [fault["text"] for fault in last["faults"]] == [f"fault {n}" for n in range(2, NUM_FAULTS + 2)]


def test_a_folder_that_cannot_be_written_to_does_not_end_a_run(tmp_path):
    status = Status(tmp_path / "nowhere")
    status.update(update=1)
    status.close("done")
