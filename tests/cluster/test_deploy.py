"""What is shipped for clusters: manifests, images, launchers and scripts keep to their schemas and to our own rules."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.host.preemption import LEAVE_WITHIN_S
from cluster.host.ray_private import check_cluster_config
from cluster.loop.team import HAND_BACK_S
from tests.support.documents import ROOT
from tests.support.manifests import DEPLOY, cluster_spec, containers, documents, manifest, parse_wmpo, pod_specs, stages
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config

SCHEMAS = Path(os.environ.get("WMPO_KUBERAY_SCHEMAS") or ROOT.parent / "shared" / "schemas")
MANIFESTS = ("rayjob.yaml", "raycluster.yaml")
METRICS_PORT = 8080
# A checkpoint of 7.5 billion parameters in bf16, on a shared file system of 150 MB/s.
CHECKPOINT_S = 15.1e9 / 150e6


@pytest.fixture(params=MANIFESTS)
def document(request) -> dict:
    return manifest(request.param)


# -- KubeRay's schemas ---------------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The schema, with unknown keys refused wherever the known ones are listed."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / f"{kind.lower()}s.v1.schema.json"
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not at {SCHEMAS}; name their folder in WMPO_KUBERAY_SCHEMAS")
    return jsonschema.Draft202012Validator(closed(json.loads(path.read_text())))


def test_a_manifest_keeps_to_its_schema(document):
    assert document["apiVersion"] == "ray.io/v1"
    assert not [f"{error.json_path}: {error.message}" for error in validator(document["kind"]).iter_errors(document)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("gcsFaultTolerance", {}), ("authOptions", {"mode": "tokens"}), ("enableInTreeAutoscaling", "yes")],
)
def test_the_schema_refuses_what_kuberay_does_not_know(document, key, value):
    cluster_spec(document)[key] = value
    assert not validator(document["kind"]).is_valid(document)


# -- our own rules for manifests -------------------------------------------------------------------------------------


def test_every_container_is_locked(document):
    for container in containers(document):
        context = container["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0 and context["runAsGroup"] > 0
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for pod in pod_specs(document).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in volume for volume in pod["volumes"])


def test_only_the_head_has_an_account(document):
    assert {name for name, pod in pod_specs(document).items() if pod.get("automountServiceAccountToken", True)} == {
        "head"
    }


def test_what_ray_writes_to_is_writable(document):
    """The root is read-only: sessions, shared memory and the home need volumes, and every mount has one."""
    for name, pod in pod_specs(document).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes.keys()
        assert all("emptyDir" in volumes[mounts[path]] for path in ("/tmp", "/home/wmpo"))
        if name != "submitter":
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert "persistentVolumeClaim" in volumes[mounts["/runs"]]
    mounts = cluster_spec(document)["autoscalerOptions"]["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= {volume["name"] for volume in pod_specs(document)["head"]["volumes"]}


def test_token_mode_fault_tolerance_and_autoscaler(document):
    spec = cluster_spec(document)
    assert spec["authOptions"]["mode"] == "token"
    assert spec["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned[1]


def test_a_pod_may_take_its_time_to_leave(document):
    for name, pod in pod_specs(document).items():
        if name != "submitter":
            assert pod["terminationGracePeriodSeconds"] > HAND_BACK_S + LEAVE_WITHIN_S + CHECKPOINT_S


def test_worker_groups_have_what_the_roles_ask_for(document, tmp_path):
    """Each role of the shipped run fits into one pod of its group, has its label, and as many pods as the run may want."""
    config = shipped_config(tmp_path)
    groups = {group["groupName"]: group for group in cluster_spec(document)["workerGroupSpecs"]}
    assert groups.keys() == {"imagination", "reward", "learner"}
    for role, group in groups.items():
        place = getattr(config.placement, role)
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert int(limits["nvidia.com/gpu"]) >= place.gpus > 0 and float(limits["cpu"]) >= place.cpus
        assert dict(label.split("=") for label in place.labels) == group["labels"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert (
        groups["imagination"]["minReplicas"],
        groups["imagination"]["maxReplicas"],
    ) == config.cluster.imagination_actors
    assert (groups["reward"]["minReplicas"], groups["reward"]["maxReplicas"]) == config.cluster.reward_actors
    beside = config.placement.environment
    (learner,) = groups["learner"]["template"]["spec"]["containers"]
    assert beside.labels == config.placement.learner.labels
    assert beside.cpus + config.placement.learner.cpus <= float(learner["resources"]["limits"]["cpu"])


def shipped_config(folder: Path) -> Config:
    (settings,) = (d for d in documents("storage.yaml") if d["kind"] == "ConfigMap")
    (name,) = settings["data"]
    (folder / name).write_text(settings["data"][name])
    return load_config(str(folder / name))


def test_both_manifests_are_the_same_cluster_and_use_the_storage_that_is_shipped():
    job, cluster = (cluster_spec(manifest(name)) for name in MANIFESTS)
    assert job == cluster
    made = {(d["kind"], d["metadata"]["name"]) for d in documents("storage.yaml")}
    for volume in job["headGroupSpec"]["template"]["spec"]["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in made
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made


def test_the_job_comes_back_and_goes_on():
    spec = manifest("rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] and spec["submissionMode"] == "K8sJobMode"
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "wmpo_ray"]
    options = parse_wmpo(words[3:])
    assert Path(options["out"]).is_relative_to("/runs") and options["resume"]
    (mount,) = (
        m for m in pod_specs(manifest("rayjob.yaml"))["head"]["containers"][0]["volumeMounts"] if "readOnly" in m
    )
    (settings,) = (d for d in documents("storage.yaml") if d["kind"] == "ConfigMap")
    assert Path(options["source"]) in [Path(mount["mountPath"]) / name for name in settings["data"]]


# -- the network -----------------------------------------------------------------------------------------------------


def outside_rules(rules: list[dict]) -> list[dict]:
    """Rules that let in others than the cluster's own pods."""
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "wmpo-ray"}}}
    return [rule for rule in rules if rule.get("from") != [own]]


def check_doors(rules: list[dict], allowed: dict[int, str]) -> None:
    for rule in outside_rules(rules):
        (peer,) = rule["from"]  # no `from` would be everybody
        (port,) = rule["ports"]  # no `ports` would be all of them
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": allowed[port["port"]]}


def test_metrics_are_for_prometheus_and_the_dashboard_for_the_operator(document):
    policy = cluster_spec(document)["networkPolicy"]
    assert policy["mode"] in ("DenyAll", "DenyAllIngress")
    check_doors(policy["head"]["ingressRules"], {METRICS_PORT: "monitoring", 8265: "kuberay-system"})
    check_doors(policy["worker"]["ingressRules"], {METRICS_PORT: "monitoring"})


def test_the_plain_policy_has_the_same_doors_and_holds_for_every_pod(document):
    everybody, head = documents("networkpolicy.yaml")
    check_doors(everybody["spec"]["ingress"], {METRICS_PORT: "monitoring"})
    check_doors(head["spec"]["ingress"], {8265: "kuberay-system"})
    assert all("Ingress" in policy["spec"]["policyTypes"] for policy in (everybody, head))
    chosen = everybody["spec"]["podSelector"]["matchLabels"].items()
    spec = cluster_spec(document)
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    if document["kind"] == "RayJob":
        templates.append(document["spec"]["submitterPodTemplate"])
    assert all(chosen <= template["metadata"]["labels"].items() for template in templates)


def test_prometheus_finds_the_metrics_port_of_every_pod(document):
    (endpoint,) = manifest("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    spec = cluster_spec(document)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports[endpoint["port"]] == METRICS_PORT == int(group["rayStartParams"]["metrics-export-port"])


# -- image, launchers, scripts ---------------------------------------------------------------------------------------


def test_nothing_secret_is_shipped():
    literal = re.compile(r"(?i)(token|password|secret|api[_-]?key)\w*\"?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{16,}['\"]?\s*$")
    for path in (p for p in DEPLOY.rglob("*") if p.is_file()):
        for line in path.read_text().splitlines():
            assert not literal.search(line) and "PRIVATE KEY" not in line, f"{path.name}: {line}"
    for name in MANIFESTS:
        for container in containers(manifest(name)):
            assert not [
                e for e in container.get("env", []) if "value" in e and re.search("TOKEN|SECRET|PASS", e["name"])
            ]
    assert literal.search("auth_token: 0123456789abcdef0123"), "the search would not find one"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_not_root_and_writes_to_volumes(target):
    lines = stages()[target]
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert len(users) == 1 and int(users[0].split(":")[0]) >= 1000
    containers_of_manifests = [c for name in MANIFESTS for c in containers(manifest(name))]
    assert {c["securityContext"]["runAsUser"] for c in containers_of_manifests} == {int(users[0].split(":")[0])}
    settings = " ".join(line for line in lines if line.startswith("ENV"))
    assert "WMPO_RUNS=/runs" in settings and "HOME=/home/wmpo" in settings and "RAY_AUTH_MODE=token" in settings
    volumes = json.loads(next(line for line in lines if line.startswith("VOLUME")).removeprefix("VOLUME "))
    assert set(volumes) == {"/home/wmpo", "/runs"}
    assert not any(line.startswith("COPY . ") for line in lines), "sources and their history stay in the first stages"


def test_images_start_from_pinned_public_ones_and_take_what_is_needed():
    text = (DEPLOY / "Dockerfile").read_text()
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    assert bases.keys() == {"PYTHON_IMAGE", "CUDA_IMAGE"}
    assert all(re.fullmatch(r"[\w/]+:\d+\.\d+\.\d+-[\w.-]+", base) for base in bases.values())
    pinned = re.search(r"^(torch==\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"ARG TORCH={pinned}\n" in text
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*"
    for line in ignored:
        assert not line.startswith("!") or (ROOT / line[1:]).exists()
    assert not {"!.git", "!runs", "!."} & set(ignored)


def test_the_ray_up_file_is_one_for_ray_and_carries_the_token():
    config = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
    check_cluster_config(copy.deepcopy(config))
    with pytest.raises(jsonschema.ValidationError):
        check_cluster_config(copy.deepcopy(config) | {"setup_command": []})
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in config[key] if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start and f"--metrics-export-port={METRICS_PORT}" in start
    assert "--dashboard-host=127.0.0.1" in "".join(config["head_start_ray_commands"])
    assert "0.0.0.0" not in (DEPLOY / "ray-up.yaml").read_text()


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_sound(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if not (shellcheck := shutil.which("shellcheck")):
        pytest.skip("bash -n passed; shellcheck is not installed")
    found = subprocess.run([shellcheck, str(script)], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
