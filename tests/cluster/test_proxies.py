"""Loopback is reached directly, whatever proxies are set, by every HTTP client that we and Ray's job client use."""

from __future__ import annotations

import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError

import pytest
import requests

from cluster.host.proxies import reach_loopback_directly

SPELLINGS = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
EXCEPTIONS = ("no_proxy", "NO_PROXY")
NOBODY = "http://127.0.0.1:1"  # where no proxy answers
OUTSIDE = "http://outside.invalid"


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def server():
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def environment(monkeypatch):
    """Without proxies; what a test sets or our own code sets is gone afterwards."""
    for name in (*SPELLINGS, *EXCEPTIONS, "no_grpc_proxy"):
        monkeypatch.setenv(name, "")  # so that it is restored, whoever sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(urllib.request, "_opener", None)  # keeps the proxies of the process's first request
    return monkeypatch


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("spelling", [("http_proxy",), ("HTTP_PROXY",), ("all_proxy",), ("ALL_PROXY",), SPELLINGS])
def test_loopback_goes_through_no_proxy_and_the_rest_does(environment, server, spelling, host):
    for name in spelling:
        environment.setenv(name, NOBODY)
    reach_loopback_directly()
    url = f"http://{host}:{server.server_port}"
    assert requests.get(url, timeout=5).text == urllib.request.urlopen(url, timeout=5).read().decode() == "hello"
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(OUTSIDE, timeout=5)
    if "all" not in spelling[0].lower():  # urllib knows no proxy for everything
        with pytest.raises(URLError, match="refused"):
            urllib.request.urlopen(OUTSIDE, timeout=5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.example, .b.example"}, "a.example,.b.example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.example,127.0.0.1"}, "a.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,b.example,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_exceptions_of_the_users_stay_and_a_second_call_changes_nothing(environment, before, after):
    for name, value in before.items():
        environment.setenv(name, value)
    for _ in range(2):
        reach_loopback_directly()
        assert {os.environ[name] for name in EXCEPTIONS} == {after} and "no_grpc_proxy" not in os.environ


def test_grpcs_own_exceptions_are_completed_where_they_take_the_place_of_the_others(environment):
    environment.setenv("no_grpc_proxy", "a.example")
    reach_loopback_directly()
    assert os.environ["no_grpc_proxy"] == "a.example,localhost,127.0.0.1,::1"
