import builtins
import errno
import json
import os

import numpy as np
import pytest

from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.metrics_log import MetricsLog


def test_what_is_logged_is_read_back_in_order(tmp_path):
    log = MetricsLog(tmp_path)
    log.log(1, {"policy/loss": np.float32(0.5), "rollout/success": 1})
    assert MetricsLog.read(tmp_path) == [{"update": 1, "policy/loss": 0.5, "rollout/success": 1}]
    log.log(2, {"policy/loss": float("nan")})
    log.close()
    assert MetricsLog.read(tmp_path)[1] == {"update": 2, "policy/loss": None}


def test_no_file_means_no_metrics(tmp_path):
    assert MetricsLog.read(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_half_written_last_line_is_dropped_and_never_appended_to(tmp_path, cut):
    log = MetricsLog(tmp_path)
    for update in (1, 2):
        log.log(update, {"a": 0.25})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["update"] for row in MetricsLog.read(tmp_path)] == [1]
    log = MetricsLog(tmp_path)
    log.log(2, {"a": 0.5})
    log.close()
    assert MetricsLog.read(tmp_path) == [{"update": 1, "a": 0.25}, {"update": 2, "a": 0.5}]


def test_a_damaged_line_elsewhere_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        MetricsLog.read(tmp_path)


def test_truncation_makes_a_resumed_log_equal_to_an_uninterrupted_one(tmp_path):
    (tmp_path / "resumed").mkdir()
    (tmp_path / "straight").mkdir()
    log = MetricsLog(tmp_path / "resumed")
    for update in range(1, 5):
        log.log(update, {"a": update / 8})
    log.close()
    log = MetricsLog(tmp_path / "resumed")
    log.truncate(after_update=2)
    assert [row["update"] for row in MetricsLog.read(tmp_path / "resumed")] == [1, 2]
    straight = MetricsLog(tmp_path / "straight")
    straight.truncate(after_update=0)
    for update in range(1, 6):
        straight.log(update, {"a": update / 8})
        if update > 2:
            log.log(update, {"a": update / 8})
    for each in (log, straight):
        each.close()
    contents = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("resumed", "straight")]
    assert contents[0] == contents[1]


def test_tensorboard_shows_each_update_once_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path)
    for update in (1, 2, 3):
        log.log(update, {"policy/loss": 1.0})
    log.truncate(after_update=1)
    for update in (2, 3):
        log.log(update, {"policy/loss": 0.5})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("policy/loss")] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_metrics_are_kept_without_tensorboard(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    log = MetricsLog(tmp_path)
    log.log(1, {"a": 1.0})
    log.close()
    assert MetricsLog.read(tmp_path) == [{"update": 1, "a": 1.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_a_full_disk_is_named_and_the_lines_before_stay_readable(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    log.log(1, {"a": 1.0})
    write, calls = os.write, []

    def half_then_full(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return write(descriptor, bytes(data[:6]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"metrics\.jsonl.*full"):
        patch.setattr(os, "write", half_then_full)
        log.log(2, {"a": 2.0})
    log.close()
    assert MetricsLog.read(tmp_path) == [{"update": 1, "a": 1.0}]


def test_the_name_update_is_taken(tmp_path):
    with pytest.raises(ValueError, match="'update' is taken"):
        MetricsLog(tmp_path).log(1, {"update": 2.0})


def test_every_line_is_strict_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.log(1, {"a": float("inf"), "b": np.float64("nan")})
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
