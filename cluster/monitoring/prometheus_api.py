"""The few calls of Prometheus's HTTP API that are needed here."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

TIMEOUT_S = 10.0


class PrometheusError(RuntimeError):
    """What Prometheus says about a query that it refuses."""


def call(url: str, path: str, **parameters: str | float) -> Any:
    """The `data` of an answer. Raises PrometheusError for a refused query, URLError where nothing answers."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    try:
        with urlopen(f"{url}/api/v1/{path}{query}", timeout=TIMEOUT_S) as answer:
            return json.load(answer)["data"]
    except HTTPError as error:
        raise PrometheusError(_reason(error)) from error


def _reason(error: HTTPError) -> str:
    try:
        return json.load(error)["error"]
    except (ValueError, KeyError):
        return str(error)
