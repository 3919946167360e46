"""Errors that the user can fix: the command line prints them as they are and exits with code 2."""


class UserError(Exception):
    """An error message in one clear line: the value, the bound, and what to change."""


class ConfigError(UserError):
    """A setting that is unknown, ill-typed or does not fit the others; one line for each."""


def first_line(error: BaseException) -> str:
    """Of what an error says, for a message in one line; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def short(error: BaseException, most: int = 300) -> str:
    """What an error says in one line of at most so many characters: those of other libraries may quote a whole file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
