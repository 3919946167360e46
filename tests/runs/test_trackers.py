import errno
import json
import os
import sys

import numpy as np
import pytest

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.runs.live_metrics import NoMeter
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.table import make_trackers
from wmpo_ray.runs.trackers.tracker import OPTIMIZE, Trackers


def test_what_is_logged_is_read_back_in_order(tmp_path):
    log = JsonlTracker(tmp_path)
    log.log(OPTIMIZE, 1, {"policy/loss": np.float32(0.5), "rollout/success": 1})
    assert JsonlTracker.read(tmp_path) == [{"update": 1, "policy/loss": 0.5, "rollout/success": 1}]
    log.log(OPTIMIZE, 2, {"policy/loss": float("nan")})
    log.close()
    assert JsonlTracker.read(tmp_path)[1] == {"update": 2, "policy/loss": None}


def test_no_file_means_no_metrics(tmp_path):
    assert JsonlTracker.read(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_half_written_last_line_is_dropped_and_never_appended_to(tmp_path, cut):
    log = JsonlTracker(tmp_path)
    for update in (1, 2):
        log.log(OPTIMIZE, update, {"a": 0.25})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["update"] for row in JsonlTracker.read(tmp_path)] == [1]
    log = JsonlTracker(tmp_path)
    log.log(OPTIMIZE, 2, {"a": 0.5})
    log.close()
    assert JsonlTracker.read(tmp_path) == [{"update": 1, "a": 0.25}, {"update": 2, "a": 0.5}]


def test_a_damaged_line_elsewhere_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        JsonlTracker.read(tmp_path)


def test_truncation_makes_a_resumed_log_equal_to_an_uninterrupted_one(tmp_path):
    (tmp_path / "resumed").mkdir()
    (tmp_path / "straight").mkdir()
    log = JsonlTracker(tmp_path / "resumed")
    for update in range(1, 5):
        log.log(OPTIMIZE, update, {"a": update / 8})
    log.close()
    log = JsonlTracker(tmp_path / "resumed")
    log.restart(OPTIMIZE, after_step=2)
    assert [row["update"] for row in JsonlTracker.read(tmp_path / "resumed")] == [1, 2]
    straight = JsonlTracker(tmp_path / "straight")
    straight.restart(OPTIMIZE, after_step=0)
    for update in range(1, 6):
        straight.log(OPTIMIZE, update, {"a": update / 8})
        if update > 2:
            log.log(OPTIMIZE, update, {"a": update / 8})
    for each in (log, straight):
        each.close()
    contents = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("resumed", "straight")]
    assert contents[0] == contents[1]


def test_a_full_disk_is_named_and_the_lines_before_stay_readable(tmp_path, monkeypatch):
    log = JsonlTracker(tmp_path)
    log.log(OPTIMIZE, 1, {"a": 1.0})
    write, calls = os.write, []

    def half_then_full(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return write(descriptor, bytes(data[:6]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"metrics\.jsonl.*full"):
        patch.setattr(os, "write", half_then_full)
        log.log(OPTIMIZE, 2, {"a": 2.0})
    log.close()
    assert JsonlTracker.read(tmp_path) == [{"update": 1, "a": 1.0}]


def test_the_name_update_is_taken(tmp_path):
    with pytest.raises(ValueError, match="'update' is taken"):
        JsonlTracker(tmp_path).log(OPTIMIZE, 1, {"update": 2.0})


def test_every_line_is_strict_json(tmp_path):
    log = JsonlTracker(tmp_path)
    log.log(OPTIMIZE, 1, {"a": float("inf"), "b": np.float64("nan")})
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)


def test_supervised_series_have_files_and_steps_of_their_own(tmp_path):
    log = JsonlTracker(tmp_path)
    log.log("reward-model", 10, {"loss": 0.5})
    log.log(OPTIMIZE, 1, {"policy/loss": 1.0})
    (tmp_path / "curves" / "reward-model.jsonl").open("ab").write(b'{"step": 20, "lo')
    again = JsonlTracker(tmp_path)
    again.log("reward-model", 20, {"loss": 0.25})
    assert JsonlTracker.read(tmp_path, "reward-model") == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}]
    assert JsonlTracker.read(tmp_path) == [{"update": 1, "policy/loss": 1.0}]


def trackers(tmp_path, *names, **monitoring) -> Trackers:
    config = Config.model_validate({"name": "tracked", "monitoring": {"trackers": names, **monitoring}})
    return make_trackers(config, tmp_path, NoMeter(), pytest.fail)


def write_resumed_run(make):
    """Three updates, then two of them once more, as after a resume; a supervised series beside them."""
    first = make()
    first.log("policy", 5, {"loss": 2.0})
    for update in (1, 2, 3):
        first.log(OPTIMIZE, update, {"policy/loss": 1.0, "policy/kl": float("nan")})
    first.close()
    again = make()
    again.restart(OPTIMIZE, 1)
    for update in (2, 3):
        again.log(OPTIMIZE, update, {"policy/loss": 0.5})
    again.close()


def test_tensorboard_shows_each_update_once_after_a_resume(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # Files are read by name, which ends in the second and in a number of this process: the tenth comes before the ninth.
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))
    write_resumed_run(lambda: trackers(tmp_path, "tensorboard"))

    def scalars(folder, name):
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    assert scalars(tmp_path / "tensorboard", "policy/loss") == [(1, 1.0), (2, 0.5), (3, 0.5)]
    assert scalars(tmp_path / "tensorboard" / "policy", "loss") == [(5, 2.0)]


def test_wandb_goes_on_in_the_same_run_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    write_resumed_run(lambda: trackers(tmp_path, "wandb", wandb={"mode": "offline", "project": "laws"}))
    wandb.teardown()  # its service would stay until this process ends
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    written = list(tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(written) == 2  # one for each time that the run was started, to be uploaded as one
    assert b"policy/loss" in b"".join(path.read_bytes() for path in written)


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    # Two of its threads may make the same folder of its file store at once, and one of them loses what it was to write.
    monkeypatch.setenv("MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE", "1")
    store = (tmp_path / "store").as_uri()
    write_resumed_run(lambda: trackers(tmp_path, "mlflow", mlflow={"tracking_uri": store, "experiment": "laws"}))
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("laws").experiment_id])
    latest = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "policy/loss")}
    assert latest == {1: 1.0, 2: 0.5, 3: 0.5} and run.info.status == "FINISHED"
    (cloning,) = client.get_metric_history(run.info.run_id, "training/policy/loss")
    assert (cloning.step, cloning.value) == (5, 2.0)
    assert client.get_metric_history(run.info.run_id, "policy/kl") == []  # NaN is no value there


class Broken:
    name = "broken"

    def __init__(self):
        self.calls = 0

    def log(self, series, step, values):
        self.calls += 1
        raise ConnectionError("the server is away")

    def restart(self, series, after_step): ...

    def close(self): ...


def test_a_tracker_that_fails_is_switched_off_and_costs_nothing(tmp_path):
    broken, warnings = Broken(), []
    log = Trackers(JsonlTracker(tmp_path), [broken], warnings.append)
    for update in (1, 2):
        log.log(OPTIMIZE, update, {"a": 1.0})
    log.close()
    assert [row["update"] for row in JsonlTracker.read(tmp_path)] == [1, 2]
    assert broken.calls == 1
    assert warnings == ["tracker broken failed and is switched off: ConnectionError: the server is away"]


def test_what_the_account_raises_ends_the_run(tmp_path):
    with pytest.raises(ConnectionError):
        Trackers(Broken()).log(OPTIMIZE, 1, {"a": 1.0})


def test_a_tracker_that_nobody_knows_or_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"monitoring.trackers names 'wanbd'; known are mlflow, prometheus"):
        trackers(tmp_path, "wanbd")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"'wandb', whose package is missing .*pip install"):
        trackers(tmp_path, "wandb")


def test_a_tracker_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "site" / "other-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[wmpo_ray.trackers]\nlist = other_tracker:ListTracker\n")
    (tmp_path / "site" / "other_tracker.py").write_text(
        "LOGGED = []\n"
        "class ListTracker:\n"
        "    name = 'list'\n"
        "    def __init__(self, folder, config, meter): pass\n"
        "    def log(self, series, step, values): LOGGED.append((series, step, dict(values)))\n"
        "    def restart(self, series, after_step): pass\n"
        "    def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    log = trackers(tmp_path, "list")
    log.log(OPTIMIZE, 1, {"a": 1.0})
    log.close()
    assert sys.modules["other_tracker"].LOGGED == [(OPTIMIZE, 1, {"a": 1.0})]
