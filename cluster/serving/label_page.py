"""`wmpo label --page`: a page on 127.0.0.1 that plays episodes and takes the verdicts of a person.

Every address of it begins with a secret that is made when it starts and shown once, so no other user and no other page in
the browser can read episodes or give verdicts.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from PIL import Image

from cluster.host.ports import LOCALHOST, require_free
from cluster.serving.label_session import Labelling
from wmpo_client.refusals import Refusal
from wmpo_ray.remote.robot_episodes import ID, frames_of

MAX_FRAMES, MAX_SIDE = 600, 480  # of what is played; of a longer episode every second, third, ... frame
FRAME_MS = 100
PAGE = """<!doctype html><meta charset="utf-8"><title>wmpo label</title>
<style>body{font:16px sans-serif;margin:2em auto;max-width:40em;text-align:center}
img{width:384px;image-rendering:pixelated;background:#ddd;min-height:6em}button{font:inherit;padding:.4em 1em;margin:.2em}
#guess{color:#555}</style>
<p id="count"></p><p><img id="film" alt="the episode"></p><p id="text"></p><p id="guess"></p>
<p><button data-key="y">success (y)</button><button data-key="n">failure (n)</button><button data-key="r">again (r)</button>
<button data-key="u">undo (u)</button><button data-key="s">skip (s)</button></p>
<script>
const at = name => document.getElementById(name);
let id = "", plays = 0;
function play() { at("film").src = id ? `frames/${id}?${plays++}` : ""; }
function show(state) {
  at("count").textContent = `${state.done} labelled, ${state.left} without a verdict`;
  at("text").textContent = state.id ? `${state.instruction} (${state.steps} steps)` : "nothing is left";
  at("guess").textContent = state.guess || "";
  if (state.id !== id) { id = state.id; play(); }
}
async function press(key) {
  if (key === "r") return play();
  if ("ynus".includes(key)) show(await (await fetch("press", {method: "POST", body: JSON.stringify({key, id})})).json());
}
document.addEventListener("keydown", event => { if (!event.repeat) press(event.key); });
document.querySelectorAll("button").forEach(each => each.onclick = () => press(each.dataset.key));
fetch("state").then(answer => answer.json()).then(show);
</script>"""
POLICY = "default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


class LabelPage:
    """Serves until the `with` block ends. Raises UserError where the port is taken."""

    def __init__(self, labelling: Labelling, port: int):
        if port:
            require_free(port)
        self.labelling, self.secret, self.guard = labelling, secrets.token_urlsafe(16), threading.Lock()
        page = self

        class Handler(_Handler):
            of = page

        self._server = ThreadingHTTPServer((LOCALHOST, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="label page", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self._server.server_port}/{self.secret}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        shown, left = self.labelling.current(), len(self.labelling.episodes.unlabelled())
        found: dict[str, Any] = {"done": len(self.labelling.done), "left": left, "id": ""}
        if shown is not None:
            found |= {"id": shown.id, "instruction": shown.instruction, "steps": shown.num_steps}
            if shown.guess is not None:
                found["guess"] = guess_text(shown.guess)
        return found

    def press(self, key: str, id: str) -> dict[str, Any]:
        """A verdict counts for the episode that was looked at: a key that comes twice labels one."""
        with self.guard:
            shown = self.labelling.current()
            if key == "u" or (shown is not None and shown.id == id):
                self.labelling.press(key)
            return self.state()


def guess_text(guess: Any) -> str:
    return f"the reward model: {'success' if guess.success else 'failure'} (probability {guess.probability:.2f})"


def film(path: Path) -> bytes:
    """An episode as an animated PNG. Raises Refusal."""
    num = sum(1 for _ in frames_of(path))
    step = -(-num // MAX_FRAMES)
    pictures = [Image.fromarray(frame) for at, frame in enumerate(frames_of(path)) if at % step == 0 or at == num - 1]
    for picture in pictures:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "PNG", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=1, compress_level=1
    )
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    of: LabelPage
    timeout = 10  # seconds, for a client that sends nothing
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        what = self._inside()
        if what == "":
            self._send(PAGE.encode(), "text/html; charset=utf-8")
        elif what == "state":
            with self.of.guard:
                self._send_json(self.of.state())
        elif what is not None and what.startswith("frames/") and ID.fullmatch(id := what.removeprefix("frames/")):
            try:
                self._send(film(self.of.labelling.episodes.path(id)), "image/png")
            except (Refusal, OSError):
                self._send_nothing(HTTPStatus.NOT_FOUND)
        else:
            self._send_nothing(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._inside() != "press" or not length.isdigit() or int(length) > 1000:
            self._send_nothing(HTTPStatus.NOT_FOUND)
            return
        try:
            sent = json.loads(self.rfile.read(int(length)))
            key, id = str(sent["key"]), str(sent["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._send_nothing(HTTPStatus.BAD_REQUEST)
            return
        try:
            self._send_json(self.of.press(key, id))
        except Refusal as refusal:
            self._send_json({**self.of.state(), "guess": f"not kept: {refusal}"})

    def _inside(self) -> str | None:
        """The path behind the secret; None without it."""
        secret, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        return rest if hmac.compare_digest(secret.encode(), self.of.secret.encode()) else None

    def _send_json(self, answer: dict[str, Any]) -> None:
        self._send(json.dumps(answer).encode(), "application/json")

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _send_nothing(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: the address with its secret is nothing for a log."""


def serve_page(labelling: Labelling, port: int, report: Callable[[str], None]) -> None:
    """Until Ctrl-C, which comes as KeyboardInterrupt."""
    with LabelPage(labelling, port) as page:
        report(f"{len(labelling.waiting)} episodes have no verdict: {page.url}")
        try:
            threading.Event().wait()
        finally:
            report(f"{len(labelling.done)} labelled, {len(labelling.episodes.unlabelled())} without a verdict")
