"""What a spare process does before it is given to an actor: it imports the libraries that actors need.

Ray calls `preload` in every worker that is started for the actors of a run, those that nobody waits for among them. It
travels by value: where this program is found only once an actor arrives, the worker waits with nothing imported.
"""

from __future__ import annotations

import os
from importlib import import_module

MODULES = "WMPO_PRELOAD"  # environment variable: names of modules, separated by commas


def preload() -> None:
    """Import the modules that `WMPO_PRELOAD` names; one that cannot be imported is left to the actor that needs it."""
    for name in filter(None, os.environ.get(MODULES, "").split(",")):
        try:
            import_module(name)
        except Exception:  # noqa: BLE001  the actor meets it again, and its error reaches the run
            return
