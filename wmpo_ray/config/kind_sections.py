"""Sections that depend on a kind: `kind` decides which class of section is valid, and so which settings there are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.plugins import Kinds
from wmpo_ray.core.section import Section, shown
from wmpo_ray.kinds import TABLES


def section_class(kinds: Kinds, name: str) -> type[Section]:
    """The class of the section of a kind. Raises ConfigError for an unknown or broken one."""
    section = kinds.find(name).section
    if not (isinstance(section, type) and issubclass(section, Section) and "kind" in section.model_fields):
        raise ConfigError(f"{kinds.key}={name!r}: its `section` is no section of settings with the field `kind`")
    return section


def chosen_section(kinds: Kinds, base: type[Section]) -> BeforeValidator:
    """Validates a table of settings as the section of its `kind`; `base` is what all these sections derive from."""

    def choose(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, base) and type(value) is not base:
            return value
        if isinstance(value, base):
            value = value.model_dump(exclude_unset=True)
        if not isinstance(value, Mapping):
            return value  # refused by the validation of `base`
        name = value.get("kind", kinds.default)
        if not isinstance(name, str):
            return base.model_validate(value)  # names what is wrong with it
        try:
            section = section_class(kinds, name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if info.mode == "json":  # arrays for tuples, and nothing else that is not strict
            return section.model_validate_json(json.dumps(value), strict=True)
        return section.model_validate(value)

    return BeforeValidator(choose)


def default_section(kinds: Kinds) -> Any:
    """The section of the default kind with its defaults, imported when it is first needed."""
    return Field(default_factory=lambda: section_class(kinds, kinds.default)())


# -- which settings belong to which kind -------------------------------------------------------------------------


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of every setting of a class of sections."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def kinds_with(kinds: Kinds, setting: str, *, of_packages: bool = True) -> list[str]:
    """Names of the kinds whose section has a setting or a table with this name; broken packages are passed over."""
    found = []
    for name in kinds.names() if of_packages else kinds:
        try:
            fields = section_class(kinds, name).model_fields
        except ConfigError:
            continue
        if setting in fields:
            found.append(name)
    return found


def refused_setting(key: str, value: Any, kinds: Mapping[str, str]) -> str | None:
    """What is wrong with the unknown key `key` where it is a setting of another kind; None where it is of no kind.

    `kinds`: the kind that was chosen in each section.
    """
    section, _, rest = key.partition(".")
    for table in TABLES:
        if table.section == section and (others := kinds_with(table, rest.partition(".")[0])):
            while isinstance(value, Mapping) and value:  # the first setting in the table is named
                name, value = next(iter(value.items()))
                key = f"{key}.{name}"
            chosen = kinds.get(section, table.default)
            owners = " or ".join(shown(other) for other in others)
            return (
                f"{key} = {shown(value)}: this is a setting of {table.key} = {owners}, and {table.key} is "
                f"{shown(chosen)}; remove the key or change {table.key}"
            )
    return None


def without_settings_of_other_kinds(data: Any) -> Any:
    """Settings that a run folder of an earlier version names for kinds of ours that it did not use: they had no effect."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    for table in TABLES:
        section = data.get(table.section)
        if isinstance(section, dict) and isinstance(name := section.get("kind"), str):
            foreign = {
                key
                for key in section
                if (owners := kinds_with(table, key, of_packages=False)) and name in table and name not in owners
            }
            data[table.section] = {key: value for key, value in section.items() if key not in foreign}
    return data


def leave_settings_of_former_kind(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Take out of the settings of a preset, in place, what does not exist under the kind that `update` chooses."""
    for table in TABLES:
        section, wanted = base.get(table.section), update.get(table.section)
        if not (isinstance(section, dict) and isinstance(wanted, Mapping) and isinstance(wanted.get("kind"), str)):
            continue
        try:
            known = section_class(table, wanted["kind"]).model_fields
        except ConfigError:
            continue  # named when the settings are validated
        for key in [key for key in section if key not in known and kinds_with(table, key)]:
            del section[key]
