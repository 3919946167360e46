"""Events: one structured line each, to the file and to whoever watches; silence where nobody asked."""

from __future__ import annotations

import io
import json
import logging
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from cluster.events.event_log import FILE_NAME, emit, event_log


def read(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def test_the_file_holds_one_json_line_for_each_event_with_its_ids(tmp_path):
    with event_log(tmp_path):
        emit("worker.lost", "imagination-0 was lost: it\ndied", logging.WARNING, worker="imagination-0", group=[3, 1])
        emit("group.imagined", "every step is in the ledger", logging.DEBUG, group=[3, 1])
    emit("after.all", "nobody listens")
    (line,) = read(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {
        "level": "warning",
        "event": "worker.lost",
        "text": "imagination-0 was lost: it\ndied",
        "worker": "imagination-0",
        "group": [3, 1],
    }


@pytest.mark.parametrize(("level", "shown"), [(logging.WARNING, 1), (logging.INFO, 2), (logging.DEBUG, 3)])
def test_outside_a_terminal_it_is_one_line_that_splits_into_keys_and_values(tmp_path, level, shown):
    stream = io.StringIO()
    with event_log(tmp_path, Console(file=stream), level):
        emit("a.debug", "d", logging.DEBUG)
        emit("an.info", "i")
        emit("a.warning", 'two\nlines, a "quote" and = signs', logging.WARNING, version=3, empty="", error="x y")
    lines = stream.getvalue().splitlines()
    assert len(lines) == shown
    stamp, name, event, *facts = shlex.split(lines[-1])
    assert (name, event) == ("WARNING", "a.warning") and stamp.endswith("Z")
    assert dict(fact.split("=", 1) for fact in facts) == {
        "text": 'two\\nlines, a "quote" and = signs', "version": "3", "empty": "", "error": "x y"
    }  # fmt: skip


def test_markup_in_a_text_is_no_markup(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with event_log(tmp_path, console):
        emit("worker.lost", "[red]list[0][/nonsense]")
    assert "[red]list[0][/nonsense]" in console.file.getvalue()


def test_a_library_says_nothing_by_itself():
    script = "import logging; from cluster.events.event_log import emit; emit('a.b', 'text', logging.ERROR)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_a_full_disk_does_not_end_a_run(tmp_path):
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with event_log(tmp_path):
        emit("stage.done", "the ledger will say it")
