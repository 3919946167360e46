"""The Grafana boards as JSON, from the rows of panels: `python -m cluster.monitoring.board` writes them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.monitoring.panels import Panel, Row
from cluster.monitoring.panels_learning import ROWS
from cluster.monitoring.panels_serving import SERVING_ROWS
from cluster.monitoring.queries import PREFIX, Query
from wmpo_ray.remote.serving_metrics import SERVING
from wmpo_ray.runs.live_metrics import METRICS

FOLDER = Path(__file__).parent
BOARD_FILE = FOLDER / "grafana" / "wmpo.json"
SERVING_BOARD_FILE = FOLDER / "grafana" / "wmpo-serve.json"
PAGE_WIDTH = 24
SCHEMA_VERSION = 41
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# A run is known by its stage from its first second on, and by its updates once it optimizes.
RUNS = f'label_values({{__name__=~"{PREFIX}wmpo_stage|{PREFIX}wmpo_update"}}, run)'
WORKERS = f'label_values({PREFIX}wmpo_phase_seconds_total{{run="$run"}}, worker)'
SERVERS = "label_values(wmpo_serve_sessions, instance)"
ANY_OF_THEM = {
    "multi": True,
    "includeAll": True,
    "allValue": ".*",
    "current": {"text": ["All"], "value": ["$__all"]},
}
HELP = {name: metric.help for name, metric in {**METRICS, **SERVING}.items()}


def make_board() -> dict[str, Any]:
    """Of a run."""
    about = "What a run does, where its time goes, whether it learns, and what failed."
    return _board("wmpo-ray", "wmpo-ray: a run", about, _variables(), ROWS)


def make_serving_board() -> dict[str, Any]:
    """Of policy servers, which are no part of a run: each is an address that Prometheus reads."""
    about = "What robots ask of policy servers, how fast they are answered, by which policy, and what was refused."
    server = _variable("server", "Server", SERVERS, sort=1) | ANY_OF_THEM
    return _board("wmpo-serve", "wmpo-ray: policy servers", about, [_source(), server], SERVING_ROWS)


def _board(uid: str, title: str, about: str, variables: list[dict[str, Any]], rows: tuple[Row, ...]) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["wmpo", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cursor over all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables},
        "panels": _lay_out(rows),
    }


def board_text(board: dict[str, Any]) -> str:
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[dict[str, Any]]:
    run = _variable("run", "Run", RUNS, sort=2)
    worker = _variable("worker", "Worker", WORKERS, sort=3)
    return [_source(), run, worker | ANY_OF_THEM]


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}


def _variable(name: str, label: str, definition: str, sort: int) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"query": definition, "refId": f"variable-{name}"},
        "refresh": 2,  # whenever the range of time changes
        "sort": sort,
    }


def _lay_out(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Panels from left to right, on a new line where they do not fit."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": PAGE_WIDTH, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        top, left = top + 1, 0
        for panel in row.panels:
            if left + panel.width > PAGE_WIDTH:
                top, left = top + row.height, 0
            place = {"x": left, "y": top, "w": panel.width, "h": row.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            left += panel.width
        top += row.height
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    names = sorted({name for each in panel.queries for name in each.names})
    helps = "\n".join(f"- `{name}`: {HELP[name]}." for name in names)
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.text}\n\n{helps}",
        "datasource": DATASOURCE,
        "targets": [_target(index, each, panel) for index, each in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _band(panel)},
        "options": _options(panel),
    }


def _target(index: int, each: Query, panel: Panel) -> dict[str, Any]:
    is_instant = panel.kind == "bargauge"
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": each.expr,
        "legendFormat": each.legend,
        "format": "heatmap" if each.is_buckets else "time_series",
        "instant": is_instant,
        "range": not is_instant,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": colour, "value": value} for value, colour in panel.thresholds]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind != "timeseries" else "palette-classic"},
    }
    limits = {"min": panel.minimum, "max": panel.maximum}
    defaults |= {key: value for key, value in limits.items() if value is not None}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.is_stacked else 5,
            "showPoints": "never",
            "spanNulls": False,  # a gap is time without data
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
        }
    return defaults


def _band(panel: Panel) -> list[dict[str, Any]]:
    if panel.band is None:
        return []
    low, high = panel.band
    look = {"custom.lineWidth": 0, "color": {"mode": "fixed", "fixedColor": "gray"}}
    return [_override(high, look | {"custom.fillBelowTo": low, "custom.fillOpacity": 20}), _override(low, look)]


def _override(legend: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": legend},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "gradient", "showUnfilled": True}
    text = "name" if panel.shows_name else "value_and_name" if len(panel.queries) > 1 else "value"
    return {"reduceOptions": reduce, "textMode": text, "colorMode": "value", "graphMode": "area", "justifyMode": "auto"}


if __name__ == "__main__":
    BOARD_FILE.write_text(board_text(make_board()))
    SERVING_BOARD_FILE.write_text(board_text(make_serving_board()))
