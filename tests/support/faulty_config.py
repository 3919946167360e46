"""The configuration of runs with faults."""

from __future__ import annotations

from tests.support.small_run import small_config
from wmpo_ray.config.run import Config

FAULTS = {
    "heartbeat_every_s": 0.5,
    "heartbeat_timeout_s": 30.0,
    "max_start_failures": 10,
    "backoff_s": 0.1,
    "max_crashes": 3,
}


def faulty_config(**changes) -> Config:
    """Four chunks in a trajectory; patient with what is tormented."""
    base = small_config(imagination_actors=2).model_dump()
    base["environment"]["horizon"] = 16
    base["faults"] |= FAULTS
    for section, values in changes.items():
        base[section] |= values
    return Config.model_validate(base)
