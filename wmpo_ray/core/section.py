"""What every section of the configuration is made of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from wmpo_ray.core.errors import ConfigError

# Bounds far above any run there is: what is beyond is a slip of the keyboard.
Count = Annotated[int, Field(ge=1, le=10**9)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
Trajectories = Annotated[int, Field(ge=1, le=10**7)]
Width = Annotated[int, Field(ge=1, le=2**16)]  # of a layer
Depth = Annotated[int, Field(ge=1, le=1024)]  # layers of a network
MAX_PROCESSES = 10**4
Processes = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


MAX_SHOWN = 60  # characters of a value in an error

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")  # a Path makes one slash of two
_PASSWORD = re.compile(r"(?<=/)[^/@]*@")


def shown(value: object) -> str:
    """A value in an error: short, and without the credentials before the @ of an address."""
    text = _PASSWORD.sub("...@", json.dumps(value, default=str))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def check_local(path: str, key: str) -> str:
    """A path of a file system, as it is. Raises ValueError for an address such as s3://bucket/run."""
    if match := _SCHEME.match(path):
        raise ValueError(
            f"{key} = {shown(path)}: {match[1]}:// is no file system of this machine; mount the storage and give its "
            f"path; change {key}"
        )
    if "\0" in path:
        raise ValueError(f"{key} = {shown(path)}: a path has no NUL character; change {key}")
    return path


def check_heads(width: int, divisor: int, key: str) -> None:
    """Raises ValueError for the width of a transformer that its heads cannot share equally."""
    if width % divisor:
        raise ValueError(f"{key} = {width}: it must be a multiple of {divisor}, because of num_heads; change {key}")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def refuse_ignored(wanted: Section, own: Mapping[str, Any], section: str, source: str) -> None:
    """Raises ConfigError for settings that were changed from their defaults and that a pretrained model contradicts.

    `own`: the settings that the model of `source` brings with it, of the section called `section`. Defaults never
    conflict; the checkpoint wins.
    """
    wrong = []
    for key, field in type(wanted).model_fields.items():
        value = getattr(wanted, key)
        if key in own and value != field.default and not _same(value, own[key]):
            wrong.append(f"{section}.{key} = {shown(value)}, in the model {shown(own[key])}")
    if wrong:
        raise ConfigError(
            f"{source} has settings of its own, which the config contradicts: {'; '.join(wrong)}; remove these keys, or "
            "name another pretrained model"
        )


def _same(value: Any, own: Any) -> bool:
    if isinstance(value, tuple | list) and isinstance(own, tuple | list):
        return list(value) == list(own)
    if isinstance(value, float) and isinstance(own, int | float):
        return math.isclose(value, own, rel_tol=1e-3)  # a ratio that was read from the shapes of weights
    return bool(value == own)
