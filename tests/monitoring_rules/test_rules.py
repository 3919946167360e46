"""Each alert fires when it should and is silent when it should: Prometheus's own test tool on `alerts_test.yml`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
MONITORING = HERE.parents[1] / "cluster" / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")


def rules() -> list[dict]:
    return yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]


def promtool(*arguments: str) -> None:
    result = subprocess.run([PROMTOOL, *arguments], check=False, capture_output=True, text=True, cwd=MONITORING)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_every_alert_fires_and_is_silent_when_it_should():
    promtool("test", "rules", str(HERE / "alerts_test.yml"))


@needs_promtool
def test_prometheus_takes_the_configuration_as_it_stands():
    promtool("check", "config", "prometheus.yml")


def whose(text: str) -> set[str]:
    """Runs and nodes that a case names."""
    return set(re.findall(r'(?:run|ip)="([^"]+)"', text))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    fires, silent = set(), set()
    for test in yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]:
        fed = whose(str(test["input_series"]))
        for case in test["promql_expr_test"]:
            names = {rule["alert"] for rule in rules() if rule["alert"] in str(case)}
            samples = case.get("exp_samples", [])
            fires |= names if samples else set()
            silent |= names if fed - whose(str(samples)) else set()
    assert fires == silent == {rule["alert"] for rule in rules()}


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert len(rule["annotations"]["description"].split()) > 10, rule["alert"]
