"""PromQL over the catalogue of live metrics: each helper refuses a name, kind or label that the catalogue has not.

Ray adds labels of its own to every series (node, session, worker id), so that everything is aggregated here; a run that
was resumed is a second set of series under the same `run`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from wmpo_ray.runs.live_metrics import METRICS, Kind, Metric

PREFIX = "ray_"  # Ray's, before the name of every metric
RATE_WINDOW = "$__rate_interval"  # at least four scrapes, chosen by Grafana
RARE_WINDOW = "15m"  # for what happens once per update, which may take minutes
WHOLE_WINDOW = "$__range"
SINCE_START = ""
ANY_WORKER = {"worker": "$worker"}


class Query(NamedTuple):
    """`names` are the metrics of the catalogue that `expr` reads."""

    expr: str
    legend: str
    names: tuple[str, ...]
    is_buckets: bool = False  # one series for each `le`: Grafana takes the differences


class Expressions:
    """Expressions over one catalogue. prefix: before the names; matcher: what the board's variable chooses."""

    def __init__(self, catalogue: Mapping[str, Metric], prefix: str, matcher: str):
        self.catalogue, self._prefix, self._matcher = catalogue, prefix, matcher

    def gauge(self, name: str, *by: str, operator: str = "max", **labels: str) -> str:
        return _aggregate(operator, by, self._selector(name, Kind.GAUGE, "", labels, by))

    def rate(self, name: str, *by: str, window: str = RATE_WINDOW, **labels: str) -> str:
        """A counter's growth per second."""
        return _aggregate("sum", by, f"rate({self._selector(name, Kind.COUNTER, '', labels, by)}[{window}])")

    def increase(self, name: str, *by: str, window: str = WHOLE_WINDOW, **labels: str) -> str:
        return _aggregate("sum", by, f"increase({self._selector(name, Kind.COUNTER, '', labels, by)}[{window}])")

    def events(self, name: str, *by: str, window: str = RARE_WINDOW, **labels: str) -> str:
        """Observations per second of a histogram. Its sum is of no use: Ray rebuilds it from the middles of the buckets."""
        return _aggregate("sum", by, f"rate({self._selector(name, Kind.HISTOGRAM, '_count', labels, by)}[{window}])")

    def quantile(self, q: float, name: str, *by: str, window: str = RARE_WINDOW, **labels: str) -> str:
        """Over `window`, or with `SINCE_START` over all there has been: the first observation of a series is no growth,
        so what happens a few times in a run would never be seen."""
        counts = self._selector(name, Kind.HISTOGRAM, "_bucket", labels, by)
        if window != SINCE_START:
            counts = f"rate({counts}[{window}])"
        return f"histogram_quantile({q}, {_aggregate('sum', ('le', *by), counts)})"

    def buckets(self, name: str, window: str = WHOLE_WINDOW) -> str:
        """Observations at or below each bound."""
        return _aggregate("sum", ("le",), f"increase({self._selector(name, Kind.HISTOGRAM, '_bucket', {})}[{window}])")

    def names_in(self, expr: str) -> tuple[str, ...]:
        """The metrics of the catalogue that an expression reads."""
        found = []
        for name, metric in self.catalogue.items():
            suffixes = ("_bucket", "_count", "_sum") if metric.kind is Kind.HISTOGRAM else ("",)
            if any(re.search(rf"\b{self._prefix}{name}{suffix}{{", expr) for suffix in suffixes):
                found.append(name)
        return tuple(found)

    def query(self, expr: str, legend: str, is_buckets: bool = False) -> Query:
        return Query(expr, legend, self.names_in(expr), is_buckets)

    def _selector(self, name: str, kind: Kind, suffix: str, labels: dict[str, str], by: tuple[str, ...] = ()) -> str:
        """Raises ValueError for a name, kind or label that is not in the catalogue."""
        metric = self.catalogue.get(name)
        if metric is None or metric.kind is not kind:
            raise ValueError(f"{name}: the catalogue has no {kind.value} of that name")
        if unknown := {*labels, *by} - {*metric.labels}:
            raise ValueError(
                f"{name} has no label {', '.join(sorted(unknown))}: it has {', '.join(metric.labels) or 'none'}"
            )
        matchers = [self._matcher]
        for label, value in labels.items():
            operator = "=~" if value.startswith("$") or "|" in value else "="
            matchers.append(f'{label}{operator}"{value}"')
        return f"{self._prefix}{name}{suffix}{{{','.join(matchers)}}}"


def _aggregate(operator: str, by: tuple[str, ...], inner: str) -> str:
    return f"{operator} by ({', '.join(by)}) ({inner})" if by else f"{operator}({inner})"


RUN = Expressions(METRICS, PREFIX, 'run="$run"')
gauge, rate, increase, events = RUN.gauge, RUN.rate, RUN.increase, RUN.events
quantile, buckets, names_in, query = RUN.quantile, RUN.buckets, RUN.names_in, RUN.query


def p50_p95(name: str, *by: str, label: str = "", window: str = RARE_WINDOW) -> tuple[Query, Query]:
    """`label` goes before "p50" in the legend; without it, the labels of `by`."""
    start = label or " ".join(f"{{{{{each}}}}}" for each in by)
    return (
        query(quantile(0.5, name, *by, window=window), f"{start} p50".strip()),
        query(quantile(0.95, name, *by, window=window), f"{start} p95".strip()),
    )
