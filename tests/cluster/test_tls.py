"""Ray with TLS and a token, set up by the commands of the deployment page: who comes in, who does not, what stays plain."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import ROOT, commands_of

COMMANDS = commands_of(ROOT / "docs" / "deploy.md", "tests/cluster/test_tls.py")
RAY = str(Path(sys.executable).parent / "ray")
HEAD = """
import json, sys, ray
context = ray.init("local", num_cpus=1, dashboard_host="127.0.0.1", dashboard_port=0, log_to_driver=False,
                   object_store_memory=100 * 2**20)
double = ray.remote(lambda x: 2 * x)
node = ray.nodes()[0]
ports = {name: node[name] for name in node if name.endswith("Port") and node[name]}
ports["GCS"] = int(context.address_info["gcs_address"].rsplit(":", 1)[1])
ports["dashboard"] = int(context.dashboard_url.rsplit(":", 1)[1])
print(json.dumps({"task": ray.get(double.remote(21)), "ports": ports}), flush=True)
sys.stdin.read()
"""
ENCRYPTED = ("GCS", "NodeManagerPort", "ObjectManagerPort", "MetricsAgentPort")  # the last: the agents' gRPC
PLAIN = ("dashboard", "MetricsExportPort", "RuntimeEnvAgentPort")
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """What the shell of a reader holds who typed the page's commands, and a token."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    outside |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    outside["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on 127.0.0.1 only
    script = "\n".join(["set -e", *COMMANDS, "env -0"])
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    variables = done.stdout[done.stdout.index("OK\n") + 3 :].split("\0")  # `openssl verify` speaks first
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


@pytest.fixture(scope="module")
def head(environment) -> Iterator[dict]:
    command = [sys.executable, "-c", HEAD]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as ray:
        try:
            yield json.loads(ray.stdout.readline())
        finally:
            ray.stdin.close()
            ray.wait(timeout=60)


def answer(port: int, folder: Path | None) -> bytes | None:
    """What a server says to HTTP/2 over TLS, with the certificate in `folder` or none; None: it speaks no TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            with context.wrap_socket(connection) as encrypted:
                encrypted.sendall(HTTP2_PREFACE)
                return encrypted.recv(9)
        except ssl.SSLError as error:
            # Under TLS 1.3 a client hears only after its handshake that its certificate was missed.
            return b"" if "CERTIFICATE_REQUIRED" in str(error) else None
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_a_task_runs_with_tls_and_a_token(environment, head):
    assert environment["RAY_USE_TLS"] == "1" and head["task"] == 42


@pytest.mark.parametrize("name", ENCRYPTED)
def test_who_shows_no_certificate_gets_no_answer(environment, head, name):
    folder = Path(environment["RAY_TLS_SERVER_CERT"]).parent
    assert answer(head["ports"][name], folder), "not even with a certificate"
    assert answer(head["ports"][name], None) == b""


@pytest.mark.parametrize("name", PLAIN)
def test_these_ports_stay_plain_as_the_page_says(head, name):
    assert answer(head["ports"][name], None) is None
    with socket.create_connection(("127.0.0.1", head["ports"][name]), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(5) == b"HTTP/"


def test_a_client_with_the_token_and_without_a_certificate_is_refused(environment, head):
    def comes_in(environment: dict[str, str]) -> bool:
        command = [RAY, "health-check", "--address", f"127.0.0.1:{head['ports']['GCS']}"]
        try:
            return (
                subprocess.run(command, check=False, env=environment, capture_output=True, timeout=10).returncode == 0
            )
        except subprocess.TimeoutExpired:  # Ray tries again for minutes
            return False

    without = {name: value for name, value in environment.items() if "TLS" not in name}
    assert without["RAY_AUTH_TOKEN_PATH"] == environment["RAY_AUTH_TOKEN_PATH"]
    assert comes_in(environment)
    assert not comes_in(without)


def test_keys_are_their_owners_and_the_certificate_names_every_node(environment):
    folder = Path(environment["RAY_TLS_SERVER_KEY"]).parent
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {
        "ca.key": 0o600,
        "tls.key": 0o600,
    }
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(folder / "tls.crt"), "-noout", "-ext", "subjectAltName,extendedKeyUsage"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for expected in ("DNS:localhost", "IP Address:127.0.0.1", "DNS:node-1", "IP Address:10.0.0.1", "TLS Web Client"):
        assert expected in shown


def test_a_second_certificate_is_of_the_same_authority(environment):
    folder = Path(environment["RAY_TLS_CA_CERT"]).parent
    authority, certificate = (folder / "ca.crt").read_bytes(), (folder / "tls.crt").read_bytes()
    script = str(ROOT / "cluster" / "deploy" / "make_certificates.sh")
    other = folder.parent / "other"
    other.mkdir()
    for name in ("ca.crt", "ca.key"):
        (other / name).write_bytes((folder / name).read_bytes())
    subprocess.run([script, str(other), "node-2"], check=True, capture_output=True)
    assert (other / "ca.crt").read_bytes() == authority and (other / "tls.crt").read_bytes() != certificate
