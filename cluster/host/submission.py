"""Jobs on a cluster that runs elsewhere: what `ray job submit` does, with clear words where something is wrong."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from requests import RequestException

from cluster.host.security import TOKEN_PATH
from wmpo_ray.core.errors import UserError

# Of the dashboard, which takes 100 MiB, and of Ray's storage behind it.
TOO_LARGE = ("Maximum request body size", "exceeds the maximum size")
NUM_LARGEST = 3  # files named where a working directory is too large
POLL_S = 0.5
AGENTS_WITHIN_S = 60.0


def connect(address: str) -> JobSubmissionClient:
    """A client of the dashboard at `address`. Raises UserError if it does not answer or rejects the token."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: expected the dashboard, such as http://127.0.0.1:8265")
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # the connection itself asks for no token
    except AuthenticationError as error:
        raise UserError(
            f"{address} does not accept the token: {_first_line(error)}; put the cluster's own into a file and name it "
            f"with {TOKEN_PATH}"
        ) from error
    except (ConnectionError, RequestException) as error:
        raise UserError(f"{address}: {_first_line(error)}; is the cluster there, and its port forwarded?") from error
    return client


def submit(
    client: JobSubmissionClient, command: Sequence[str], working_dir: Path, environment: Mapping[str, str]
) -> str:
    """Send the working directory and start `command` in it; returns the job's id.

    Raises UserError for a directory that is missing or larger than Ray takes.
    """
    if not working_dir.is_dir():
        raise UserError(f"--working-dir {working_dir}: there is no such folder")
    runtime_env = {"working_dir": str(working_dir), "env_vars": dict(environment)}
    try:
        return _submit(client, shlex.join(command), runtime_env)
    except (RuntimeError, ValueError, OSError) as error:
        # A dashboard that has seen enough may close the connection before it is asked why.
        if not isinstance(error, OSError) and not any(words in str(error) for words in TOO_LARGE):
            raise UserError(f"the job was refused: {_first_line(error)}") from error
        raise UserError(
            f"--working-dir {working_dir} did not arrive, the dashboard takes 100 MiB: {_first_line(error)} Largest files: "
            f"{_largest(working_dir)}. Name what need not travel in a file .rayignore there (as in .gitignore)"
        ) from error


def _submit(client: JobSubmissionClient, entrypoint: str, runtime_env: dict) -> str:
    """A cluster that has just been started takes no jobs before its agents are up."""
    deadline = time.monotonic() + AGENTS_WITHIN_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> bool:
    """Show the job's log as it grows, until it ends; whether it succeeded.

    Raises UserError where the connection is lost: the job itself goes on.
    """

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            show(text)

    try:
        asyncio.run(tail())
        while not (status := client.get_job_status(job)).is_terminal():
            time.sleep(POLL_S)  # the log ends a moment before the job does
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"lost the connection to the job's log: {_first_line(error)}; the job goes on, see it with "
            f"`ray job logs --follow --address {client.get_address()} {job}`"
        ) from error
    return bool(status == JobStatus.SUCCEEDED)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _largest(folder: Path) -> str:
    files = sorted(((path.stat().st_size, path) for path in folder.rglob("*") if path.is_file()), reverse=True)
    return ", ".join(f"{path.relative_to(folder)} ({size / 2**20:.0f} MiB)" for size, path in files[:NUM_LARGEST])
