"""The token: there before Ray, for its owner only, and not guessable."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.host.security import TOKEN, TOKEN_PATH, read_token, require_token
from wmpo_ray.core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "folder" / "token"
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setenv(TOKEN_PATH, str(path))
    return path


def test_a_token_is_made_once_and_only_its_owner_reads_it(path):
    assert read_token() == ""
    assert require_token() == path
    token = read_token()
    assert len(token) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    require_token()
    assert read_token() == token and list(path.parent.iterdir()) == [path]


def test_two_that_come_at_once_have_the_same_token(path):
    script = "from cluster.host.security import read_token, require_token; require_token(); print(read_token())"
    started = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert {process.communicate()[0].strip() for process in started} == {path.read_text()}


def test_a_file_that_others_may_read_is_closed_to_them(path):
    path.parent.mkdir()
    path.write_text("0123456789abcdef" * 2)
    path.chmod(0o644)
    require_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_token_is_refused(path, monkeypatch, tmp_path):
    path.parent.mkdir()
    path.write_text("secret\n")
    with pytest.raises(UserError, match="a token of 6 characters, 16 are the least") as refused:
        require_token()
    assert "secret" not in str(refused.value)
    monkeypatch.setenv(TOKEN, "")
    with pytest.raises(UserError, match=TOKEN):
        require_token()
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    assert require_token() is None
    monkeypatch.delenv(TOKEN)
    monkeypatch.setenv(TOKEN_PATH, str(tmp_path))
    with pytest.raises(UserError, match=TOKEN_PATH):
        require_token()


def test_ray_that_is_prepared_for_this_machine_asks_for_a_token_and_stays_on_it(path):
    script = """
import os
from cluster.host.security import prepare_ray
prepare_ray("")
import ray
from cluster.host.ray_private import is_token_auth_enabled
print(is_token_auth_enabled(), ray.util.get_node_ip_address())
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment[TOKEN_PATH] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "127.0.0.1"], done.stdout
