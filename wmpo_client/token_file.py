"""The token between robots and servers, and its file: made once for a user, read by every program of theirs.

It is not Ray's: a robot that holds it may ask for actions and send episodes, and not run programs on a cluster.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from wmpo_client.refusals import ClientError

TOKEN, TOKEN_PATH = "WMPO_TOKEN", "WMPO_TOKEN_PATH"
MIN_TOKEN_LENGTH = 16


def token_path() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".config" / "wmpo" / "token").expanduser()


def read_token() -> str:
    """The token of this user. Raises ClientError where there is none, or none that is one."""
    if TOKEN in os.environ:
        return check_token(os.environ[TOKEN], TOKEN)
    path = token_path()
    try:
        return check_token(path.read_text(), str(path))
    except OSError as error:
        raise ClientError(
            f"{path}: {error.strerror}; copy the server's token there, name another file with {TOKEN_PATH}, or set {TOKEN}"
        ) from error


def require_token() -> str:
    """The token of this user, made where there is none. Raises ClientError."""
    if TOKEN not in os.environ and not token_path().exists():
        try:
            make_token(token_path())
        except OSError as error:
            raise ClientError(
                f"{token_path()}: {error.strerror}; name another file for the token with {TOKEN_PATH}"
            ) from error
    return read_token()


def make_token(path: Path) -> None:
    """Write a new token for the eyes of this user alone; a second process that comes at once uses the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def check_token(token: str, where: str) -> str:
    """The token without blanks around it. Raises ClientError for one that could be guessed."""
    token = token.strip()
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        raise ClientError(
            f"{where} holds a token of {len(token)} characters; it needs {MIN_TOKEN_LENGTH} or more, all of them plain ASCII"
        )
    return token
