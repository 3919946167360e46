"""What a person can mend: one clear line."""

from __future__ import annotations


class ClientError(Exception):
    """The value, the bound, and what to change."""


class Refusal(Exception):
    """A call that a server does not serve. `reason` is the counted name, `code` the name of a gRPC status code."""

    def __init__(self, code: str, reason: str, message: str):
        super().__init__(message)
        self.code, self.reason = code, reason


def bad(message: str) -> Refusal:
    """A message that does not fit."""
    return Refusal("INVALID_ARGUMENT", "invalid", message)
