"""The commands of docs/deploy.md that need machines which are not here: they name what is there, and options that exist."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from cluster.host.ray_private import check_cluster_config
from tests.support.documents import ROOT, commands_of
from tests.support.manifests import (
    DEPLOY,
    KUBERAY,
    UsageError,
    cluster_spec,
    containers,
    documents,
    manifest,
    parse_wmpo,
    stages,
)
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError

PAGE = ROOT / "docs" / "deploy.md"
ON_PAPER = "tests/cluster/test_deploy_commands.py::test_the_commands_of_the_page_name_what_is_there"


def check_command(command: str) -> None:
    """The files, stages, services and options that a command names are there."""
    words = shlex.split(command.strip("()").removeprefix("umask 077; "))
    match words:
        case ["export", *settings]:
            assert all("=" in setting for setting in settings)
        case ["helm", *_]:
            check_helm(words)
        case ["docker", "build", *_]:
            assert (ROOT / after(words, "-f")).is_file() and after(words, "--target") in stages()
            assert after(words, "-t") == containers(manifest("rayjob.yaml"))[0]["image"]
        case ["kubectl", "apply" | "delete", *rest]:
            assert rest[0::2] == ["-f"] * (len(rest) // 2) and all(documents(Path(f).name) for f in rest[1::2])
            assert all((ROOT / file).is_file() for file in rest[1::2])
        case ["kubectl", "get", "rayjob", name, "--watch"]:
            assert name == manifest("rayjob.yaml")["metadata"]["name"]
        case ["kubectl", "logs", *_]:
            assert after(words, "--selector") == f"job-name={manifest('rayjob.yaml')['metadata']['name']}"
        case ["kubectl", "get", "secret", name, *_]:
            assert name == manifest("raycluster.yaml")["metadata"]["name"]
        case ["kubectl", "port-forward", service, "8265"]:
            assert service == f"service/{manifest('raycluster.yaml')['metadata']['name']}-head-svc"
        case ["ray", "up" | "down" | "dashboard", *_, file]:
            check_cluster_config(yaml.safe_load((ROOT / file).read_text()))
            check_ray_options(words[1:-1])
        case ["ray", "get-auth-token", *_]:
            check_ray_options(words[1:])
        case ["chmod", "600", "~/.ray/auth_token"]:
            assert words[2] in yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())["file_mounts"]
        case ["sbatch", *rest]:
            script = next(index for index, word in enumerate(rest) if not word.startswith("-"))
            assert os.access(ROOT / rest[script], os.X_OK)
            options = parse_wmpo(["run", *rest[script + 1 :]])
            assert load_config(options["source"]) and Path(options["out"]).is_absolute()
        case ["wmpo", *rest]:
            parse_wmpo(rest)
        case _:
            pytest.fail(f"no check for: {command}")


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def check_helm(words: list[str]) -> None:
    if words[1:3] == ["repo", "add"]:
        assert words[4].startswith("https://")
        return
    rules = cluster_spec(manifest("rayjob.yaml"))["networkPolicy"]["head"]["ingressRules"]
    namespaces = {r["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for r in rules}
    assert after(words, "--namespace") in namespaces
    gates = [word.partition("=")[2] for word in words if word.endswith(("Policy", "Storage"))]
    told = (KUBERAY / "rayjob.yaml").read_text()
    assert gates and all(gate in told for gate in gates)


def check_ray_options(words: list[str]) -> None:
    known = {option for parameter in ray_cli.commands[words[0]].params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("-")} <= known


def test_the_commands_of_the_page_name_what_is_there():
    for command in commands_of(PAGE, ON_PAPER):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "kubectl apply -f cluster/deploy/kuberay/nothing.yaml",
        "docker build -f cluster/deploy/Dockerfile --target gpu -t wmpo-ray:cuda .",
        "ray up --yes --nothing cluster/deploy/ray-up.yaml",
        "sbatch cluster/deploy/slurm.sh nothing --out /shared/runs/demo",
        "sbatch cluster/deploy/slurm.sh demo --nothing",
        "kubectl port-forward service/other-head-svc 8265",
    ],
)
def test_a_command_that_names_what_is_not_there_is_found(command):
    with pytest.raises((AssertionError, OSError, ConfigError, UsageError)):
        check_command(command)
