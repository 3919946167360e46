"""What the trajectory files of a run say of where their episodes come from."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.files import sha256_of_folder
from wmpo_ray.data.about import Provenance

# Packages that an environment may be made of, and numpy, whose random numbers place the scenes.
SIMULATORS = ("wmpo-ray", "numpy", "gymnasium", "mujoco", "robosuite", "metaworld", "pymunk")


def recorded(environment: EnvironmentConfig, made_by: str, policy: Path | None = None) -> Provenance:
    """Of episodes that are recorded in an environment now; `policy` is the folder of the one that acts."""
    return Provenance(
        origin="real",
        made_by=made_by,
        policy_sha256="" if policy is None else sha256_of_folder(policy),
        environment=environment.model_dump(mode="json", exclude=set(environment.places)),
        versions=simulator_versions(),
    )


def simulator_versions() -> dict[str, str]:
    """Of the installed ones of `SIMULATORS`, and the OpenGL that MuJoCo draws with, since pictures depend on it."""
    versions = {"MUJOCO_GL": os.environ["MUJOCO_GL"]} if os.environ.get("MUJOCO_GL") else {}
    for package in SIMULATORS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
