"""Ray's doors: the token that they ask for, and the interfaces that they are on.

Ray reads its environment when it is imported, so `prepare_ray` comes before that. What is set by the user stays.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from cluster.host.proxies import reach_loopback_directly
from wmpo_ray.core.errors import UserError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# With more than one machine out of question, Ray takes 127.0.0.1 for its own address and binds everything to it.
SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
MIN_TOKEN_LENGTH = 16


def prepare_ray(address: str) -> None:
    """Have the Ray that will be imported ask for a token and, if it is started here (`address` ""), stay on 127.0.0.1.

    No proxy stands between it and this process. Raises UserError for a token that is no token.
    """
    reach_loopback_directly()
    if "ray" not in sys.modules:
        os.environ.setdefault(MODE, "token")
        if not address:
            os.environ.setdefault(SEVERAL_MACHINES, "0")
    if os.environ.get(MODE, "token") == "token":
        require_token()


def require_token() -> Path | None:
    """The file of the token, made where there is none; None where the token stands in the environment itself.

    Raises UserError for an empty or guessable token and for a file that cannot be read.
    """
    if TOKEN in os.environ:
        _check(os.environ[TOKEN], TOKEN)
        return None
    path = token_path()
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # Ray makes it readable for everybody on the machine
        _check(path.read_text().strip(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file for the token with {TOKEN_PATH}") from error
    return path


def token_path() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token").expanduser()


def read_token() -> str:
    """The token of this user, "" if there is none."""
    if TOKEN in os.environ:
        return os.environ[TOKEN].strip()
    path = token_path()
    return path.read_text().strip() if path.is_file() else ""


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, path)  # a second process uses the first one's
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _check(token: str, where: str) -> None:
    if len(token.strip()) < MIN_TOKEN_LENGTH:
        raise UserError(
            f"{where} holds a token of {len(token.strip())} characters, {MIN_TOKEN_LENGTH} are the least; "
            "make one with `ray get-auth-token --generate`, or delete the file"
        )
