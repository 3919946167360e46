"""NVIDIA's MimicGen, found at run time: its licence allows research use only, so it is the user who brings it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from wmpo_ray.core.errors import ConfigError, first_line
from wmpo_ray.core.section import shown
from wmpo_ray.environments.mimicgen.mimicgen_settings import INSTRUCTIONS
from wmpo_ray.environments.robosuite.installed import load_robosuite

KIND = 'environment.kind="mimicgen"'
MODULE = "mimicgen"
SAYS = "Got error: "  # how it says what it could not import
INSIDE = Path("envs", "robosuite")  # of its package; the package of that name on PyPI has no such folder
ADVICE = (
    "check out github.com/NVlabs/mimicgen and name the folder in environment.checkout (its licence allows research use "
    "only; the package mimicgen on PyPI is another thing)"
)


def load_mimicgen(checkout: str) -> None:
    """Import MimicGen, which registers its tasks with robosuite.

    Raises ConfigError in one line where it, or something that it needs, is missing or is something else.
    """
    package = find_mimicgen(checkout)
    load_robosuite()
    from robosuite.environments.base import REGISTERED_ENVS

    # It prints what it cannot import, such as tasks that need another package.
    with _first_on_path(package.parent), contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            importlib.import_module(MODULE)
        except (ImportError, SyntaxError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"{KIND}: {package} cannot be imported ({first_line(error)}); {ADVICE}") from None
    if missing := [task for task in INSTRUCTIONS if task not in REGISTERED_ENVS]:
        said = [line.removeprefix(SAYS) for line in printed.getvalue().splitlines() if line.startswith(SAYS)]
        raise ConfigError(
            f"{KIND}: {package} has no task {', '.join(missing)} ({'; '.join(said) or 'no reason given'})"
        )


def mimicgen_version() -> str:
    """Of the one that was imported."""
    return str(getattr(sys.modules[MODULE], "__version__", "unknown"))


def find_mimicgen(checkout: str) -> Path:
    """The folder of the package, which is not imported yet; raises ConfigError as `load_mimicgen`."""
    if loaded := sys.modules.get(MODULE):
        package = Path(str(loaded.__file__)).parent
        if checkout and package != _package_in(checkout):
            raise ConfigError(
                f"environment.checkout={shown(checkout)}: this process has MimicGen from {package} already"
            )
    elif checkout:
        package = _package_in(checkout)
        if not package.is_dir():
            raise ConfigError(f"environment.checkout={shown(checkout)}: there is no folder {package}; {ADVICE}")
    else:
        spec = importlib.util.find_spec(MODULE)
        if spec is None or not spec.origin:
            raise ConfigError(f"{KIND} needs NVIDIA's MimicGen, which was not found; {ADVICE}")
        package = Path(spec.origin).parent
    if not (package / INSIDE).is_dir():
        raise ConfigError(f"{KIND}: {package} is not NVIDIA's MimicGen, it has no folder {INSIDE}; {ADVICE}")
    return package


def _package_in(checkout: str) -> Path:
    return Path(checkout).expanduser().resolve() / MODULE


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
