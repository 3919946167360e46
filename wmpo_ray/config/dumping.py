"""A configuration back to text, its hash, and what differs between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from wmpo_ray.config.algorithms import SECTIONS
from wmpo_ray.config.run import Config
from wmpo_ray.core.section import shown
from wmpo_ray.kinds import TABLES


def flatten(config: BaseModel) -> dict[str, Any]:
    """Every setting by its dotted key, without those of algorithms that are not chosen."""
    flat: dict[str, Any] = {}
    for name, value in _chosen(config):
        if isinstance(value, BaseModel):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def _chosen(config: BaseModel) -> list[tuple[str, Any]]:
    """The sections and settings that have an effect: those of algorithms that are not chosen have none."""
    dropped = SECTIONS.keys() - {config.algorithm.section} if isinstance(config, Config) else ()
    return [(name, value) for name, value in config if name not in dropped]


def config_hash(config: Config) -> str:
    """16 hex digits that are equal for equal settings, on every machine."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def config_differences(a: Config, b: Config) -> list[str]:
    """One line for each setting that differs: `grpo.learning_rate: 0.0001 -> 1e-05`.

    Where the kinds of a section differ, its other settings are compared as far as both kinds have them; those of one
    kind alone are listed where they are not at their defaults.
    """
    first, second = flatten(a), flatten(b)
    lines = [
        f"{key}: {shown(value)} -> {shown(second[key])}"
        for key, value in first.items()
        if key in second and value != second[key]
    ]
    lines += [f"{key}: {shown(first[key])} -> none" for key in _chosen_alone(a, second)]
    return lines + [f"{key}: none -> {shown(second[key])}" for key in _chosen_alone(b, first)]


def _chosen_alone(config: Config, other: Mapping[str, Any]) -> list[str]:
    """Settings of `config` that are not at their defaults and that the other config does not have at all."""
    defaults: dict[str, Any] = {}
    for table in TABLES:
        for name, field in type(getattr(config, table.section)).model_fields.items():
            default, key = field.get_default(call_default_factory=True), f"{table.section}.{name}"
            inner = flatten(default) if isinstance(default, BaseModel) else {}
            defaults |= {f"{key}.{rest}": value for rest, value in inner.items()} or {key: default}
    for section, cls in SECTIONS.items():
        defaults |= {f"{section}.{key}": value for key, value in cls()}
    return [key for key, value in flatten(config).items() if key not in other and value != defaults.get(key)]


def config_to_json(config: Config) -> str:
    """Text for `config.json`; `read_config_json` is the inverse."""
    return config.model_dump_json(indent=1) + "\n"


def config_to_toml(config: Config) -> str:
    """The whole configuration as a file that `load_config` reads; it names no preset."""
    lines: list[str] = []
    section = ""
    flat = {key: value for key, value in flatten(config).items() if value is not None}  # TOML has no word for None
    for key in sorted(flat, key=lambda k: k.rpartition(".")[0]):
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{table}]"]
        lines.append(f"{name} = {_toml_value(flat[key])}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)  # a JSON scalar or array of scalars is TOML as well
