"""How MuJoCo draws without a screen: what works is tried, what the user chose stays, and where nothing works it says why."""

from __future__ import annotations

import os

import pytest

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.environments.simulators import opengl


def test_the_first_backend_that_draws_is_taken_and_the_users_choice_wins(monkeypatch):
    tried = []

    def probe(backend: str) -> opengl.Probed:
        tried.append(backend)
        return opengl.Probed(backend == "osmesa", "no display")

    monkeypatch.setattr(opengl, "probe", probe)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert opengl.choose_backend() == os.environ["MUJOCO_GL"] == "osmesa" and tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert opengl.choose_backend() == "egl" and len(tried) == 2
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ConfigError, match='MUJOCO_GL="vulkan": it must be one of egl, osmesa'):
        opengl.choose_backend()


def test_without_any_backend_both_reasons_and_the_packages_are_named(monkeypatch):
    monkeypatch.setattr(opengl, "probe", lambda backend: opengl.Probed(False, f"no {backend} here"))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(ConfigError) as caught:
        opengl.choose_backend()
    message = str(caught.value)
    assert "egl: no egl here, osmesa: no osmesa here" in message and "libosmesa6" in message and "\n" not in message
    assert "MUJOCO_GL" not in os.environ


def test_a_probe_that_fails_says_why():
    found = opengl.probe("no-such-backend")
    assert not found.works and found.detail
