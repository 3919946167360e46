"""Where this process runs: on its own, or as the driver of a job that was submitted to a Ray cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path

from wmpo_ray.config.cluster import check_address
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import check_local

RUNS = "WMPO_RUNS"  # environment variable: the folder for runs without --out
DEFAULT_RUNS = "runs"


def job_id() -> str:
    """The submission id of the job that this process is the driver of; "" if it is none."""
    try:
        return str(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""


def cluster_address(config: Config) -> str:
    """The cluster to run on; "" for one that is started here.

    Raises UserError where RAY_ADDRESS is none: a dashboard, for instance, takes jobs but no drivers.
    """
    if config.cluster.address:
        return config.cluster.address
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        return "" if address == "local" else check_address(address, "RAY_ADDRESS")
    except ValueError as error:
        raise UserError(str(error)) from None


def run_folder(out: Path | None, config: Config) -> Path:
    """Where a run's folder is: `out`, or $WMPO_RUNS/<name>, or runs/<name>; in a job ~/wmpo-runs/<name>.

    Raises UserError for a relative path in a job: its working directory is a copy, which Ray deletes.
    """
    try:
        check_local(str(out or ""), "--out")
    except ValueError as error:
        raise UserError(str(error)) from None
    base = os.environ.get(RUNS) or (Path.home() / "wmpo-runs" if job_id() else DEFAULT_RUNS)
    folder = out if out is not None else Path(base).expanduser() / config.name
    if job_id() and not folder.is_absolute():
        raise UserError(
            f"{folder} is relative, and the working directory of a job is deleted with it; give --out, or {RUNS}, an "
            "absolute path, on storage that all nodes share"
        )
    return folder
