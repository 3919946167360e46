"""Errors that a person can act on: the command line prints them as they are and exits with code 2."""


class UserError(Exception):
    """What is wrong, in one clear line: the value, the bound, and what to set or do."""


class ConfigError(UserError):
    """A setting that is unknown, ill-typed or does not fit the others; one line for each."""
