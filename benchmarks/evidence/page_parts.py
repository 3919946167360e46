"""What the tables of the page share."""

from __future__ import annotations

from benchmarks.evidence.results import Result
from benchmarks.results_file import RESULTS_DIR
from wmpo_ray.core.files import atomic_write

PAGE, PICTURES = RESULTS_DIR / "evidence.md", RESULTS_DIR / "evidence"


def picture_of(name: str, content: str, alt: str) -> str:
    """Write a drawing beside the page; returns the line that shows it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    atomic_write(PICTURES / f"{name}.svg", content)
    return f"![{alt}](evidence/{name}.svg)"


def seeds_text(result: Result) -> str:
    return ", ".join(map(str, result.seeds))


def interval_text(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
