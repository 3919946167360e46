"""Whether robosuite can be used here: is it installed, and in versions that fit each other?"""

from __future__ import annotations

import importlib
import logging
import re
from importlib import metadata
from typing import Any

from wmpo_ray.core.errors import ConfigError, first_line
from wmpo_ray.environments.simulators.opengl import choose_backend

# Package -> (first version that works, first that does not). MuJoCo 2.3.2 is what the extra `sim` installs.
SUPPORTED = {"robosuite": ((1, 4, 1), (1, 4, 2)), "mujoco": ((2, 3, 2), (3,)), "numpy": ((1, 26), (2,))}
INSTALL = "install the versions that fit with: pip install 'wmpo-ray[sim]', or make setup EXTRAS=sim"


def load_robosuite(kind: str = "robosuite") -> Any:
    """The package, ready to draw without a screen, for environments of a kind. Raises ConfigError in one line where it cannot be used."""
    if version_of("robosuite") is None:
        raise ConfigError(
            f'environment.kind="{kind}" needs the package robosuite, which is not installed; pip install '
            "'wmpo-ray[sim]' or change environment.kind"
        )
    if wrong := conflicts():
        raise ConfigError(f'environment.kind="{kind}": {"; ".join(wrong)}; {INSTALL}')
    choose_backend()
    # Its only news at the import are that it has no private settings.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        return importlib.import_module("robosuite")
    except (ImportError, AttributeError, RuntimeError) as error:  # OpenGL that is not there is any of them
        raise ConfigError(f'environment.kind="{kind}" cannot be imported ({first_line(error)}); {INSTALL}') from None


def conflicts() -> list[str]:
    """What is wrong with the installed versions, one phrase for each package; none where robosuite is not installed."""
    if version_of("robosuite") is None:
        return []
    wrong = []
    for package, (low, high) in SUPPORTED.items():
        version = version_of(package)
        if version is None:
            wrong.append(f"{package} is missing")
        elif not low <= _numbers(version) < high:
            bounds = f"at least {_text(low)} and below {_text(high)}"
            wrong.append(f"{package} {version} does not work with it, {bounds} does")
    return wrong


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers)) if len(numbers) > 1 else f"{numbers[0]}.0"
