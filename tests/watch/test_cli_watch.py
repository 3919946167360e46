"""The commands that look at runs, from their arguments to what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli.watch_commands import add_watching
from wmpo_ray.core.errors import UserError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    add_watching(app)
    return app


def call(app: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_prints_one_picture_where_nobody_watches(app: typer.Typer, running: Path):
    assert "running in stage optimize" in call(app, "status", running)
    data = json.loads(call(app, "status", running, "--json"))
    assert data["condition"] == "running" and data["status"]["update"] == 7 and data["stage"] == "optimize"
    assert len(data["curves"]["imagined/success_rate"]) == 15


def test_trace_writes_where_it_says(app: typer.Typer, running: Path, tmp_path: Path):
    text = call(app, "trace", running)
    assert str(running / "trace-update-000003.json") in text.replace("\n", "") and "ui.perfetto.dev" in text
    call(app, "trace", running, "--update", 4, "--out", tmp_path / "four.json")
    assert json.loads((tmp_path / "four.json").read_text())["otherData"]["complete"] is False


def test_runs_looks_where_the_environment_says(app, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WMPO_RUNS", str(done.parent))
    assert json.loads(call(app, "runs", "--json"))[0]["state"] == "done"
    (tmp_path / "empty").mkdir()
    assert "holds no runs" in call(app, "runs", tmp_path / "empty")


def test_compare_writes_a_page(app: typer.Typer, running: Path, done: Path, tmp_path: Path):
    text = call(app, "compare", running, done, "--out", tmp_path / "page.html")
    assert "All settings are equal" in text and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    beside = done.parent / f"compare-{done.name}-{running.name}.html"
    assert str(beside) in call(app, "compare", done, running).replace("\n", "") and beside.is_file()
    with pytest.raises(UserError, match="does not exist"):
        call(app, "compare", running, done, "--out", tmp_path / "nowhere" / "page.html")
