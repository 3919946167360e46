"""The shipped files for clusters, as tests read them."""

from __future__ import annotations

import re
from typing import Any

import typer
import yaml

from cluster.cli.app import app
from tests.support.documents import ROOT

DEPLOY = ROOT / "cluster" / "deploy"
KUBERAY = DEPLOY / "kuberay"
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the click that typer brings along


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def manifest(name: str) -> dict:
    (document,) = documents(name)
    return document


def cluster_spec(document: dict) -> dict:
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def pod_specs(document: dict) -> dict[str, dict]:
    spec = cluster_spec(document)
    pods = {"head": spec["headGroupSpec"]["template"]}
    pods |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    if document["kind"] == "RayJob":
        pods["submitter"] = document["spec"]["submitterPodTemplate"]
    return {name: template["spec"] for name, template in pods.items()}


def containers(document: dict) -> list[dict]:
    pods = pod_specs(document).values()
    found = [c for pod in pods for c in [*pod["containers"], *pod.get("initContainers", [])]]
    return [*found, cluster_spec(document)["autoscalerOptions"]]  # a container beside the head


def stages() -> dict[str, list[str]]:
    """Stage of the Dockerfile -> its instructions."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = []
        elif found and line.strip():
            found[list(found)[-1]].append(line)
    return found


def parse_wmpo(arguments: list[str]) -> dict[str, Any]:
    """What our own command line makes of these words, without running them. Raises UsageError."""
    group = typer.main.get_command(app)
    context = group.make_context("wmpo", list(arguments))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(name, rest, parent=context).params
