"""The board of policy servers asks for what a server exports."""

from __future__ import annotations

import shutil
import time

import pytest

from cluster.host.ports import free_port
from cluster.monitoring.board import make_serving_board
from cluster.monitoring.check import query_board
from cluster.monitoring.panels_serving import SERVER
from cluster.monitoring.server import PrometheusServer, find_prometheus
from wmpo_ray.remote.serving_metrics import SERVING, ServingMetrics


def test_every_metric_of_a_policy_server_is_exported_and_on_its_board():
    exported = {
        f"{each.name}_total" if each.type == "counter" else each.name for each in ServingMetrics().registry.collect()
    }
    assert exported == set(SERVING)
    queries = [target["expr"] for panel in make_serving_board()["panels"] for target in panel.get("targets", ())]
    assert {name for expr in queries for name in SERVER.names_in(expr)} == set(SERVING)
    with pytest.raises(ValueError, match="no counter of that name"):
        SERVER.rate("wmpo_groups_total")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_query_of_the_board_of_policy_servers_returns_data(tmp_path):
    metrics = ServingMetrics()
    with PrometheusServer(find_prometheus(), tmp_path, free_port(), [f"127.0.0.1:{metrics.listen(0)}"], 1) as server:
        assert [target.is_up for target in server.targets(60)] == [True]
        for _ in range(4):
            metrics.refused("token")
            metrics.chunks.labels("3", "abc").inc()
            metrics.uploads.labels("success").inc()
            for each in (metrics.act_seconds, metrics.policy_seconds, metrics.batch_size):
                each.observe(0.01)
            time.sleep(1.1)
        results = query_board(server.url, "", 10, rate_interval_s=4, board=make_serving_board())
    assert [each for each in results if each.error or not each.has_data] == []
