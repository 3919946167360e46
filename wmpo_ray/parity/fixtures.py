"""Every fixture in a folder, through the public classes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from wmpo_ray.core.errors import UserError
from wmpo_ray.parity.case import ParityCase

# Folder of published fixtures -> the module here that compares it.
FIXTURES = {
    "world_model": "world_model_fixtures",
    "vae": "vae_fixtures",
    "policy": "policy_fixtures",
    "smolvla": "flow_fixtures",
    "pi0": "flow_fixtures",
    "pi05": "flow_fixtures",
    "image_preproc": "image_fixtures",
    "reward": "reward_fixtures",
    "grpo": "grpo_fixtures",
    "manifests": "manifests",
}


class FixtureResult(NamedTuple):
    """`cases` is None where nothing here can read the fixture."""

    name: str
    cases: list[ParityCase] | None


def run_fixtures(folder: str | Path) -> Iterator[FixtureResult]:
    """Compare everything published that `folder` holds, one sub-folder after the other.

    Raises UserError if it holds none of `FIXTURES`, or if one is damaged.
    """
    found = [name for name in FIXTURES if (Path(folder) / name).is_dir()]
    if not found:
        raise UserError(f"{folder} holds no fixtures: none of the folders {', '.join(FIXTURES)} is in it")
    for name in found:
        module = f"{__package__}.{FIXTURES[name]}"
        if find_spec(module) is None:
            yield FixtureResult(name, None)
        else:
            yield FixtureResult(name, import_module(module).check(Path(folder) / name))
