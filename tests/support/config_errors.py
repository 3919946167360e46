"""What is wrong with settings, as a user reads it."""

from __future__ import annotations

import pytest

from wmpo_ray.config.loading import (
    load_config,
)
from wmpo_ray.core.errors import ConfigError


def error_of(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)
