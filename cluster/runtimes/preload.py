"""What a spare process does before it is given to an actor: it imports the libraries that actors need, and may load models.

Ray calls `preload` in every worker that is started for the actors of a run, those that nobody waits for among them. It
travels by value: where this program is found only once an actor arrives, the worker waits with nothing imported.
"""

from __future__ import annotations

import json
import os
from importlib import import_module

# Environment variables.
MODULES = "WMPO_PRELOAD"  # names of modules, separated by commas
# A file that is there once the first actors serve: until then workers are no spares, and their actors wait for them.
# JSON: "config", "folders" by the names of models, "build".
MODELS = "WMPO_PRELOAD_MODELS"


def preload() -> None:
    """Import the modules that `WMPO_PRELOAD` names, and hold the models that the file of `WMPO_PRELOAD_MODELS` names.

    What cannot be imported or loaded is left to the actor that needs it.
    """
    for name in filter(None, os.environ.get(MODULES, "").split(",")):
        try:
            import_module(name)
        except Exception:  # noqa: BLE001  the actor meets it again, and its error reaches the run
            return
    if not os.path.isfile(path := os.environ.get(MODELS, "")):
        return
    try:
        from wmpo_ray.config.loading import validate
        from wmpo_ray.registry import hold_models

        with open(path, encoding="utf-8") as file:
            wanted = json.load(file)
        hold_models(validate(wanted["config"]), wanted["folders"], wanted["build"])
    except Exception:  # noqa: BLE001  as above
        return
