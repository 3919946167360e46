"""Settings in a file, and what is wrong with them, as a user reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError


def write_config(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text)
    return str(path)


def error_of(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)
