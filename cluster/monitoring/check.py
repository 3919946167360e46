"""Asks a running Prometheus everything that the board and the alerts ask, as Grafana would."""

from __future__ import annotations

import math
import re
import time
from typing import Any, NamedTuple

import yaml

from cluster.monitoring.board import FOLDER, make_board
from cluster.monitoring.prometheus_api import PrometheusError, call

ALERTS_FILE = FOLDER / "alerts.yml"
MAX_STEPS = 600
_LABEL_VALUES = re.compile(r"label_values\((?P<series>.*), *(?P<label>\w+)\)")


class QueryResult(NamedTuple):
    """`error` is what Prometheus said, "" if the query is valid; `series` is how many of them have a finite value."""

    panel: str
    expr: str
    error: str
    series: int

    @property
    def has_data(self) -> bool:
        return self.series > 0


def query_board(
    prometheus_url: str,
    run: str,
    window_s: float = 600.0,
    rate_interval_s: float = 20.0,
    board: dict[str, Any] | None = None,
) -> list[QueryResult]:
    """Every query of every panel and of every variable, over the last `window_s` seconds of `run`.

    board: None: that of a run. Raises URLError where no Prometheus answers.
    """
    board = make_board() if board is None else board
    values = {
        "run": run,
        "worker": ".*",
        "server": ".*",
        "__rate_interval": f"{math.ceil(rate_interval_s)}s",
        "__range": f"{math.ceil(window_s)}s",
    }
    results = [
        _variable(prometheus_url, variable["name"], _fill_in(variable["definition"], values), window_s)
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            results.append(_range(prometheus_url, panel["title"], _fill_in(target["expr"], values), window_s))
    return results


def query_alerts(prometheus_url: str, window_s: float = 600.0) -> list[QueryResult]:
    """Every alert's expression; that one returns nothing is well. Raises URLError where no Prometheus answers."""
    return [_range(prometheus_url, rule["alert"], rule["expr"], window_s) for rule in alert_rules()]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS_FILE.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _fill_in(text: str, values: dict[str, str]) -> str:
    """Raises KeyError for a variable that the board has not."""
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], text)


def _variable(url: str, name: str, definition: str, window_s: float) -> QueryResult:
    match = _LABEL_VALUES.fullmatch(definition)
    assert match is not None, f"variable {name}: {definition!r} is no label_values(...)"
    now = time.time()
    try:
        series = call(url, "series", **{"match[]": match["series"], "start": now - window_s, "end": now})
    except PrometheusError as error:
        return QueryResult(f"variable {name}", definition, str(error), 0)
    return QueryResult(
        f"variable {name}", definition, "", len({s[match["label"]] for s in series if match["label"] in s})
    )


def _range(url: str, title: str, expr: str, window_s: float) -> QueryResult:
    now = time.time()
    step = max(1.0, window_s / MAX_STEPS)
    try:
        data = call(url, "query_range", query=expr, start=now - window_s, end=now, step=step)
    except PrometheusError as error:
        return QueryResult(title, expr, str(error), 0)
    finite = [s for s in data["result"] if any(math.isfinite(float(value)) for _, value in s["values"])]
    return QueryResult(title, expr, "", len(finite))
