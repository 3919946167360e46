"""The one place where consoles are made, so that neither a text nor a terminal can break a command.

A string is printed as it is: brackets in a path are no markup, and `:name:` is no emoji. Style comes as `rich.text.Text`.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console

UNFORGIVING = ("strict", "surrogateescape")  # the second is what LC_ALL=C sets: it cannot write an accent either


def make_console(*, stderr: bool = False, quiet: bool = False, highlight: bool = True) -> Console:
    """A console on standard output or, with `stderr`, on standard error; what its encoding lacks becomes "?"."""
    replace_unencodable()
    return Console(stderr=stderr, quiet=quiet, highlight=highlight, markup=False, emoji=False)


def replace_unencodable() -> None:
    """Have standard output and standard error write "?" for what their encoding lacks, in place of raising.

    Names of files that are not UTF-8 cannot be written to a terminal that is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in UNFORGIVING:
            stream.reconfigure(errors="replace")
