"""`wmpo label` in the terminal: episodes played, and the keys of a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from cluster.serving.label_page import guess_text
from cluster.serving.label_session import Labelling
from wmpo_ray.remote.robot_episodes import frames_of

MAX_ROWS, MAX_COLUMNS = 32, 64  # characters of a picture
KEYS = "y success, n failure, r again, u undo, s skip, q end"


def label_episodes(
    labelling: Labelling, console: Console, ask: Callable[[], str] | None = None, frame_s: float = 0.1
) -> int:
    """Show every episode without a verdict and keep what the keys of `ask` say; returns how many were labelled."""
    episodes, key = labelling.episodes, ask or read_key
    console.print(f"{len(labelling.waiting)} of {len(episodes.ids())} episodes have no verdict; {KEYS}")
    while not labelling.has_ended and (shown := labelling.current()) is not None:
        play(shown.path, console, frame_s)
        place = f"[{labelling.place + 1}/{len(labelling.waiting)}]"
        console.print(f"{shown.id}: {shown.instruction} ({shown.num_steps} steps) {place}", markup=False)
        if shown.guess is not None:
            console.print(guess_text(shown.guess))
        labelling.press(key())
    console.print(f"{len(labelling.done)} labelled, {len(episodes.unlabelled())} without a verdict")
    return len(labelling.done)


def play(path: Path, console: Console, frame_s: float) -> None:
    """The frames of an episode one after the other, in place; where the console is no terminal, the last one."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for frame in frames_of(path):
            live.update(picture(frame), refresh=console.is_terminal)
            if console.is_terminal:
                time.sleep(frame_s)
        live.refresh()


def picture(frame: np.ndarray) -> Text:
    """A frame [H, W, 3] uint8 as characters, two pixels above each other in each."""
    height, width = frame.shape[:2]
    scale = max(height / (2 * MAX_ROWS), width / MAX_COLUMNS, 1.0)
    size = (max(1, round(width / scale)), 2 * max(1, round(height / scale / 2)))
    small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
    text = Text()
    for row in range(0, small.shape[0], 2):
        for upper, lower in zip(small[row].tolist(), small[row + 1].tolist(), strict=True):
            text.append("▀", Style(color=_rgb(upper), bgcolor=_rgb(lower)))
        text.append("\n")
    return text


def _rgb(pixel: list[int]) -> str:
    return f"rgb({pixel[0]},{pixel[1]},{pixel[2]})"


def read_key() -> str:
    """One key of the terminal; where there is none, the first character of a line, "q" at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line[:1].strip() or ("s" if line else "q")
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        return sys.stdin.read(1).lower()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
