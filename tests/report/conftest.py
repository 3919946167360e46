"""A run folder that is read and never changed, and the pages made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_run import write_fake_run
from wmpo_ray.report.html import write_report


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def page(run_folder: Path) -> str:
    return write_report(run_folder).read_text(encoding="utf-8")
