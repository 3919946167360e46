"""Errors that the user can fix: the command line prints them as they are and exits with code 2."""


class UserError(Exception):
    """An error message in one clear line: the value, the bound, and what to change."""


class ConfigError(UserError):
    """A setting that is unknown, ill-typed or does not fit the others; one line for each."""


def first_line(error: BaseException) -> str:
    """Of what an error says, for a message in one line; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
