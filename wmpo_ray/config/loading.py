"""From presets, files and `--set` to a `Config`, and back to text.

Every way in ends in the same strict check, so a number in quotes is an error wherever it was written.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from wmpo_ray.config.algorithms import SECTIONS, unchosen
from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.former_settings import (
    FORMER_MIRROR,
    with_present_mirror,
    with_present_mirror_of_user,
    without_ignored_sampler,
)
from wmpo_ray.config.kind_sections import (
    leave_settings_of_former_kind,
    refused_setting,
    section_class,
    settings_of,
    without_settings_of_other_kinds,
)
from wmpo_ray.config.run import IMPLIED_BY_RECIPE, Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_bytes, read_json
from wmpo_ray.kinds import TABLES

PRESET_KEY, VARIANT_KEY, VARIANTS_KEY = "preset", "variant", "variants"


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `source`, the name of a preset or the path of a TOML file.

    A file may start from a preset with the top-level key `preset = "demo"`. `overrides` are `dotted.key=value` with
    TOML values; text that is no TOML is taken as a string. `variant = "paper"`, in the file or the overrides, lays the
    table `[variants.paper]` of the preset over its settings; what the file and the overrides say wins. Raises
    ConfigError with one line for each wrong key.
    """
    presets, own = _read(source)
    for override in overrides:
        _merge(own, _parse_override(override))
    own = with_present_mirror_of_user(own)
    data = _with_variant(presets, own.pop(VARIANT_KEY, ""))
    _merge(data, copy.deepcopy(IMPLIED_BY_RECIPE.get(str(_table(own, "recipe").get("kind")), {})))
    _keep_chosen_algorithm(data, own)
    _lay_over(data, own)
    return validate(data)


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with some settings changed, `dotted.key=value` each. Raises ConfigError as `load_config` does."""
    data, own = _without_unchosen_algorithms(json.loads(config.model_dump_json())), dict[str, Any]()
    for override in overrides:
        _merge(own, _parse_override(override))
    _merge(data, copy.deepcopy(IMPLIED_BY_RECIPE.get(str(_table(own, "recipe").get("kind")), {})))
    _keep_chosen_algorithm(data, own)
    _lay_over(data, own)
    return validate(data)


def _keep_chosen_algorithm(presets: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Drop the presets' sections of algorithms that are not chosen; ConfigError where the user has set one of them."""
    chosen = {**_table(presets, "algorithm"), **_table(own, "algorithm")}
    kind = chosen.get("kind", "grpo")
    for name in SECTIONS:
        if name == (chosen.get("settings") or kind):
            continue
        presets.pop(name, None)
        for key, value in _table(own, name).items():
            raise ConfigError(unchosen(f"{name}.{key}", value, name, kind))


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key)
    return table if isinstance(table, Mapping) else {}


def validate(data: Mapping[str, Any]) -> Config:
    """The Config of nested tables; raises ConfigError."""
    try:
        # Strict JSON: no "5" for 5, but arrays for tuples.
        return Config.model_validate_json(json.dumps(data, default=str), strict=True)
    except RecursionError:
        raise ConfigError("the settings are nested too deeply; no key has more than four parts") from None
    except ValidationError as error:
        raise ConfigError("\n".join(describe_errors(error, _chosen_kinds(data)))) from None


def list_presets() -> list[str]:
    folder = resources.files("wmpo_ray.config.presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def described(preset: str) -> str:
    """What one of them is: the comment that its file begins with, as one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), _preset_text(preset).splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _preset_text(name: str) -> str:
    return resources.files("wmpo_ray.config.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8")


# -- reading -----------------------------------------------------------------------------------------------------


def _read(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested tables: those of the presets that `source` is or starts from, with their variants, and those of its own."""
    if source in list_presets():
        text = _preset_text(source)
    else:
        text = _read_file(source)
    try:
        own = tomllib.loads(text)
    except ValueError as error:  # also a number of too many digits
        raise ConfigError(f"{source} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply; no setting is a list of lists") from None
    base: dict[str, Any] = {}
    if PRESET_KEY in own:
        name = own.pop(PRESET_KEY)
        if name not in list_presets():
            raise ConfigError(f"{source}: {PRESET_KEY} = {shown(name)}: known presets are {', '.join(list_presets())}")
        base, _ = _read(name)
    if source not in list_presets():
        return base, own
    _lay_over(base, own)
    return base, {}


def _with_variant(presets: dict[str, Any], variant: Any) -> dict[str, Any]:
    """The settings of presets with those of one of their variants laid over them; "": none."""
    variants = presets.pop(VARIANTS_KEY, {})
    if variant != "":
        if variant not in list(variants):
            known = f"known are {', '.join(sorted(variants))}" if variants else "the preset has none"
            raise ConfigError(f"{VARIANT_KEY} = {shown(variant)}: {known}; change {VARIANT_KEY}")
        _lay_over(presets, variants[variant])
    return presets


def _read_file(source: str) -> str:
    path = Path(source)
    if "\0" in source or not path.is_file():
        raise ConfigError(f"{source!r} is neither a preset ({', '.join(list_presets())}) nor a file")
    try:
        return read_bytes(path, MAX_SETTINGS_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is not UTF-8 text") from None
    except UserError as error:
        raise ConfigError(str(error)) from None


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=c` -> {"a": {"b": c}}."""
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: expected key=value, for instance --set grpo.learning_rate=1e-5")
    data: Any = _parse_value(text.strip())
    for part in reversed(parts):
        data = {part: data}
    return data


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _lay_over(preset: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay `update` over a preset in place; a kind that it changes takes the settings of the preset's kind away."""
    leave_settings_of_former_kind(preset, update)
    _merge(preset, update)


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay `update` over `base` in place, table by table."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


# -- what is wrong -----------------------------------------------------------------------------------------------


def describe_errors(error: ValidationError, kinds: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """One line for each mistake: the dotted key, the value, and what is expected; `kinds` are those chosen, by section."""
    return [_describe(details, kinds) for details in error.errors()]


def _chosen_kinds(data: Any) -> dict[str, str]:
    if not isinstance(data, dict):
        return {}
    sections = {table.section: data.get(table.section) for table in TABLES}
    return {
        name: section["kind"] for name, section in sections.items() if isinstance(section, dict) and "kind" in section
    }


def _describe(details: Any, kinds: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        if key == FORMER_MIRROR:
            return (
                f"{key} = {shown(details['input'])}: the environment says now whether its scenes can be mirrored; remove the "
                'key, or set augmentation.mirror to "none"'
            )
        if refusal := refused_setting(key, details["input"], kinds):
            return refusal
        return f"unknown key {key}; did you mean {nearest_key(key, isinstance(details['input'], Mapping))}?"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "model_type":
        return f"{key} = {shown(details['input'])}: it must be a table of keys, {_keys_of(key)}"
    if details["type"] == "missing":
        return f"{key.rpartition('.')[0]} = {shown(details['input'])}: an item is missing"
    return f"{key} = {shown(details['input'])}: {details['msg'].replace('Input should', 'it must')}"


def known_settings() -> list[str]:
    """Every dotted key of any kind of ours."""
    found = dict.fromkeys(flatten(Config()))
    for section, cls in SECTIONS.items():
        found |= {key: None for key in settings_of(cls, f"{section}.") if key not in found}
    for table in TABLES:
        for name in table:
            found |= dict.fromkeys(settings_of(section_class(table, name), f"{table.section}."))
    return list(found)


def known_sections() -> list[str]:
    parts = [key.split(".")[:-1] for key in known_settings()]
    return list(dict.fromkeys(".".join(names[:n]) for names in parts for n in range(1, len(names) + 1)))


def nearest_key(key: str, table: bool = False) -> str:
    """The valid dotted key most like `key`, among the sections if `table`; its last part counts as much as the whole."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, key.split(".")[-1], candidate.split(".")[-1]).ratio()

    # A key of an algorithm that is not the default one is suggested to those who have named its section.
    unlikely = SECTIONS.keys() - {Config().algorithm.section, key.split(".")[0]}
    candidates = known_sections() if table else known_settings()
    return max((name for name in candidates if name.split(".")[0] not in unlikely), key=likeness)


def _keys_of(section: str) -> str:
    known = [key for key in known_settings() if key.startswith(f"{section}.")]
    return f"such as {known[0]}" if known else "see the presets"


# -- back to text ------------------------------------------------------------------------------------------------


def read_config_json(path: Path) -> Config:
    """The configuration that a run folder was made with; raises ConfigError where it is missing or damaged."""
    try:
        data = read_json(path, MAX_SETTINGS_BYTES)
    except UserError as error:
        raise ConfigError(str(error)) from None
    try:
        data = with_present_mirror(without_ignored_sampler(data))
        return validate(without_settings_of_other_kinds(_without_unchosen_algorithms(data)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _without_unchosen_algorithms(data: Any) -> Any:
    """The settings of the chosen algorithm only: of the others a run's file has the defaults of its time."""
    if not isinstance(data, dict):
        return data
    chosen = _table(data, "algorithm")
    name = chosen.get("settings") or chosen.get("kind", "grpo")
    return {key: value for key, value in data.items() if key not in SECTIONS or key == name}
