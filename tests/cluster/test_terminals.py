"""Every command that prints does so on any terminal, for folders of any name, and about folders that are no runs."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.loop.ledger import FILE_NAME, Ledger
from tests.support.fake_live import fake_status
from tests.watch.conftest import write_run
from wmpo_ray.core.console import make_console

ROOT = Path(__file__).parents[2]
ODD_NAMES = ("[bold]x[/bold]", "[/]", "a b :smile: é", os.fsdecode(b"not utf-8 \xff"), "\N{SNOWMAN}[red]")
ASCII, UTF8 = "ascii", "utf-8"


@pytest.fixture(params=ODD_NAMES, ids=ascii)
def odd_run(request, tmp_path: Path) -> Path:
    """A run in the middle of its stage optimize, in a folder of an odd name."""
    folder = write_run(tmp_path / request.param, status=fake_status())
    Ledger(folder / FILE_NAME).close()
    return folder


def wmpo(charset: str, *arguments: object, code: int = 0) -> str:
    """What a command prints, lines joined: a table breaks long names."""
    result = CliRunner(charset=charset, env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("charset", [ASCII, UTF8])
def test_every_command_about_a_run_prints_the_name_of_its_folder_as_it_is(charset, odd_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_printed = odd_run.name.encode(charset, "replace").decode(charset)
    for arguments in (
        ["trace", odd_run],
        ["runs", odd_run.parent],
        ["compare", odd_run, odd_run],
        ["ledger", odd_run],
        ["report", odd_run],
    ):
        assert as_printed in wmpo(charset, *arguments), arguments
    assert "optimize" in wmpo(charset, "status", odd_run)
    for arguments in (["status", odd_run, "--json"], ["runs", odd_run.parent, "--json"]):
        json.loads(wmpo(charset, *arguments))
    assert (odd_run / "report" / "index.html").is_file()
    assert (odd_run.parent / f"compare-{odd_run.name}-{odd_run.name}.html").is_file()


@pytest.mark.parametrize("arguments", [["presets"], ["plan", "smoke", "--set=world_model.pretrained="], ["--help"]])
def test_other_commands_print_where_the_terminal_knows_ascii_only(arguments):
    assert wmpo(ASCII, *arguments).isascii()


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "other"])
@pytest.mark.parametrize("command", ["status", "trace", "ledger", "verify", "report", "compare", "parity"])
def test_what_is_no_run_is_named_in_one_line_and_left_alone(command, kind, tmp_path):
    place = tmp_path / "[red]é"
    if kind == "file":
        place.write_text("mine")
    elif kind != "missing":
        place.mkdir()
    if kind == "other":
        (place / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    folders = [place, place] if command == "compare" else [place]
    result = CliRunner().invoke(app, [command, *map(str, folders)])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "[red]é" in result.stderr and sorted(tmp_path.rglob("*")) == before


def test_a_home_in_a_path_is_expanded_once_and_a_strangers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", status=fake_status())
    assert str(tmp_path / "page.html") in wmpo(UTF8, "compare", "~/run", run, "--out=~/page.html")
    assert "optimize" in wmpo(UTF8, "status", "~/run")
    result = CliRunner().invoke(app, ["run", "smoke", "--serial", "--out=~no-such-user/x"])
    assert result.exit_code == 2 and "~no-such-user is no user's home" in result.stderr
    assert not list(tmp_path.glob("~*"))


def test_consoles_are_made_in_one_place():
    for path in [path for top in ("wmpo_ray", "cluster") for path in (ROOT / top).rglob("*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(ast.unparse(call.func).split(".")[-1] == "Console" for call in calls):
            assert path == ROOT / "wmpo_ray" / "core" / "console.py"


def test_a_console_prints_text_of_the_users_as_it_is(capsys):
    make_console().print("[red]a[/] :smile: [link=x]")
    assert capsys.readouterr().out == "[red]a[/] :smile: [link=x]\n"


@pytest.mark.parametrize("place", ["folder", "file/x", "n" * 300], ids=["a folder", "below a file", "too long"])
def test_a_path_that_cannot_be_written_is_one_line(place, tmp_path):
    run = write_run(tmp_path / "run", status=fake_status())
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for arguments in (["trace", run], ["compare", run, run]):
        result = CliRunner().invoke(app, [*map(str, arguments), f"--out={tmp_path / place}"])
        assert result.exit_code == 2 and place[-9:] in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


def test_an_address_that_is_none_is_one_line():
    result = CliRunner().invoke(app, ["submit", "smoke", "--address", "http://[::1"])
    assert result.exit_code == 2 and "http://[::1" in result.stderr and result.stderr.count("\n") == 1
