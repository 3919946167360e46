"""From presets, files and `--set` to a `Config`, and back to text.

Every way in ends in the same strict check, so a number in quotes is an error wherever it was written.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from wmpo_ray.config.algorithms import SECTIONS
from wmpo_ray.config.run import Config, unchosen
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_bytes, read_json

PRESET_KEY, VARIANT_KEY, VARIANTS_KEY = "preset", "variant", "variants"


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `source`, the name of a preset or the path of a TOML file.

    A file may start from a preset with the top-level key `preset = "demo"`. `overrides` are `dotted.key=value` with
    TOML values; text that is no TOML is taken as a string. `variant = "paper"`, in the file or the overrides, lays the
    table `[variants.paper]` of the preset over its settings; what the file and the overrides say wins. Raises
    ConfigError with one line for each wrong key.
    """
    presets, own = _read(source)
    said: dict[str, Any] = {}
    for override in overrides:
        _merge(said, _parse_override(override))
    variant = said.pop(VARIANT_KEY, own.pop(VARIANT_KEY, ""))
    data = _with_variant(presets, variant)
    _merge(own, said)
    _keep_chosen_algorithm(data, own)
    _merge(data, own)
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
        raise ConfigError("\n".join(describe_errors(error))) from None


def list_presets() -> list[str]:
    folder = resources.files("wmpo_ray.config.presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


# -- reading -----------------------------------------------------------------------------------------------------


def _read(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested tables: those of the presets that `source` is or starts from, with their variants, and those of its own."""
    if source in list_presets():
        text = resources.files("wmpo_ray.config.presets").joinpath(f"{source}.toml").read_text(encoding="utf-8")
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
    _merge(base, own)
    return base, {}


def _with_variant(presets: dict[str, Any], variant: Any) -> dict[str, Any]:
    """The settings of presets with those of one of their variants laid over them; "": none."""
    variants = presets.pop(VARIANTS_KEY, {})
    if variant != "":
        if variant not in list(variants):
            known = f"known are {', '.join(sorted(variants))}" if variants else "the preset has none"
            raise ConfigError(f"{VARIANT_KEY} = {shown(variant)}: {known}; change {VARIANT_KEY}")
        _merge(presets, variants[variant])
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


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay `update` over `base` in place, table by table."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


# -- what is wrong -----------------------------------------------------------------------------------------------


def describe_errors(error: ValidationError) -> list[str]:
    """One line for each mistake: the dotted key, the value, and what is expected."""
    return [_describe(details) for details in error.errors()]


def _describe(details: Any) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"unknown key {key}; did you mean {nearest_key(key, isinstance(details['input'], Mapping))}?"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "model_type":
        return f"{key} = {shown(details['input'])}: it must be a table of keys, {_keys_of(key)}"
    if details["type"] == "missing":
        return f"{key.rpartition('.')[0]} = {shown(details['input'])}: an item is missing"
    return f"{key} = {shown(details['input'])}: {details['msg'].replace('Input should', 'it must')}"


def nearest_key(key: str, table: bool = False) -> str:
    """The valid dotted key most like `key`, among the sections if `table`; its last part counts as much as the whole."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, key.split(".")[-1], candidate.split(".")[-1]).ratio()

    # A key of an algorithm that is not chosen is suggested to those who have named its section.
    named = key.split(".")[0]
    config = Config.model_validate({"algorithm": {"kind": named}}) if named in SECTIONS else Config()
    return max(_sections(config) if table else flatten(config), key=likeness)


def _keys_of(section: str) -> str:
    known = [key for key in flatten(Config()) if key.startswith(f"{section}.")]
    return f"such as {known[0]}" if known else "see the presets"


# -- back to text ------------------------------------------------------------------------------------------------


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
    dropped = SECTIONS.keys() - {config.algorithm.section} if isinstance(config, Config) else ()
    return [(name, value) for name, value in config if name not in dropped]


def _sections(config: BaseModel) -> list[str]:
    names = []
    for name, value in _chosen(config):
        if isinstance(value, BaseModel):
            names += [name, *(f"{name}.{inner}" for inner in _sections(value))]
    return names


def config_hash(config: Config) -> str:
    """16 hex digits that are equal for equal settings, on every machine."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def config_differences(a: Config, b: Config) -> list[str]:
    """One line for each setting that differs: `grpo.learning_rate: 0.0001 -> 1e-05`."""
    first, second = flatten(a), flatten(b)
    keys = {**first, **second}  # algorithms differ in their settings
    return [
        f"{key}: {shown(first.get(key))} -> {shown(second.get(key))}"
        for key in keys
        if first.get(key) != second.get(key)
    ]


def config_to_json(config: Config) -> str:
    """Text for `config.json`; `read_config_json` is the inverse."""
    return config.model_dump_json(indent=1) + "\n"


def read_config_json(path: Path) -> Config:
    """The configuration that a run folder was made with; raises ConfigError where it is missing or damaged."""
    try:
        data = read_json(path, MAX_SETTINGS_BYTES)
    except UserError as error:
        raise ConfigError(str(error)) from None
    try:
        return validate(_without_ignored_sampler(data))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _without_ignored_sampler(data: Any) -> Any:
    """Before there were solvers, the sampler of a pretrained model could not be chosen: what was written had no effect."""
    world_model = data.get("world_model") if isinstance(data, dict) else None
    if not isinstance(world_model, dict) or not isinstance(world_model.get("sampler"), dict):
        return data
    if "solver" in world_model["sampler"] or not world_model.get("pretrained"):
        return data
    return {**data, "world_model": {key: value for key, value in world_model.items() if key != "sampler"}}


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
        # A JSON scalar or array of scalars is TOML as well.
        lines.append(f"{name} = {json.dumps(flat[key], ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
