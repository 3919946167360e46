"""Tables of named kinds: our own, and those that installed packages register with an entry point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from wmpo_ray.core.errors import ConfigError


class Plugin(NamedTuple):
    """An entry point of an installed package; `problem` says why it cannot be used, "" where it can."""

    key: str
    name: str
    package: str
    problem: str


class Kinds:
    """One table of kinds: `key` is the setting that chooses among them, `group` the entry points of other packages.

    A kind is named by "module:attribute" and imported when it is first asked for. The attribute is an object with the
    `members`, or a class that makes one when it is called without arguments. Our own names cannot be taken by a package.
    """

    def __init__(self, key: str, group: str, own: Mapping[str, str], members: Sequence[str]):
        self.key, self.group, self.members = key, group, tuple(members)
        self._own = dict(own)
        self._found: dict[str, Any] = {}

    @property
    def section(self) -> str:
        """The section of the configuration that holds the setting."""
        return self.key.rpartition(".")[0]

    @property
    def default(self) -> str:
        return next(iter(self._own))

    def __iter__(self) -> Iterator[str]:
        """Our own names."""
        return iter(self._own)

    def names(self) -> list[str]:
        """Every name, sorted; nothing is imported for it."""
        return sorted({*self._own, *(point.name for point in entry_points(group=self.group))})

    def find(self, name: str) -> Any:
        """The kind called `name`. Raises ConfigError where there is none, or where its package is broken."""
        if name not in self._found:
            if name in self._own:
                module, _, attribute = self._own[name].partition(":")
                self._found[name] = getattr(import_module(module), attribute)()
            else:
                self._found[name] = self._from_package(name)
        return self._found[name]

    def plugins(self) -> list[Plugin]:
        """Every entry point of the group, whether it can be used or not."""
        return [
            Plugin(self.key, point.name, _package(point), self._problem(point))
            for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, _package(point)))
        ]

    def _from_package(self, name: str) -> Any:
        points = list(entry_points(group=self.group, name=name))
        if not points:
            raise ConfigError(f"{self.key}={name!r} is unknown; known are {self.names()}")
        if problem := self._problem(points[0]):
            raise ConfigError(f"{self.key}={name!r}, registered by the package {_package(points[0])}: {problem}")
        return _load(points[0])

    def _problem(self, point: EntryPoint) -> str:
        """Why an entry point cannot be used, in one line; "" if it can."""
        if point.name in self._own:
            return f"the name {point.name!r} is one of ours; rename the entry point"
        packages = sorted({_package(other) for other in entry_points(group=self.group, name=point.name)})
        if len(packages) > 1:
            return f"the name {point.name!r} is registered by {' and '.join(packages)}; uninstall one of them"
        try:
            kind = _load(point)
        except (Exception, SystemExit) as error:  # noqa: BLE001  importing a stranger's module may raise anything
            reason = (str(error).strip().splitlines() or [""])[0]
            return f"{point.value} cannot be loaded ({type(error).__name__}: {reason}); repair or uninstall the package"
        missing = [member for member in self.members if not hasattr(kind, member)]
        return f"{point.value} has no {', '.join(missing)}; repair or uninstall the package" if missing else ""


def _load(point: EntryPoint) -> Any:
    value = point.load()
    return value() if isinstance(value, type) else value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
