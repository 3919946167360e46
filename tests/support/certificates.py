"""Certificates as `cluster/deploy/make_certificates.sh` makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.documents import ROOT


def certificates(folder: Path, days: str = "2") -> Path:
    script = ROOT / "cluster" / "deploy" / "make_certificates.sh"
    environment = {"DAYS": days, "PATH": "/usr/bin:/bin"}
    # It ends with an error where what it made does not hold, which is wanted of one that has expired.
    done = subprocess.run([script, folder], check=False, capture_output=True, text=True, env=environment)
    assert (folder / "tls.crt").exists(), done.stderr
    return folder
