"""The machine and the packages that a run was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "ray", "diffusers", "transformers", "numpy", "wmpo-ray")


def package_versions() -> dict[str, str]:
    """Of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def processor_name() -> str:
    """Such as `AMD EPYC 7B13`."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def machine_name() -> str:
    """Such as `AMD EPYC 7B13, 2 cores, 8 GiB`."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor_name()}, {os.cpu_count()} cores, {gib:.0f} GiB"
