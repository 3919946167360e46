"""A page in the report's style, with any content."""

from __future__ import annotations

from wmpo_ray.report.markup import Markup, join, tag
from wmpo_ray.report.style import STYLE

# The browser itself enforces that the page loads nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, *content: Markup) -> str:
    """A whole page that loads nothing. What is not Unicode, as in names of files that are not UTF-8, becomes "?"."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    page = f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *content)), lang='en')}\n"
    return page.encode(errors="replace").decode()


def grid(title: str, *cards: Markup) -> Markup:
    """Cards side by side, under a title where there is one."""
    return join([tag("h2", title, class_="group") if title else None, tag("div", *cards, class_="grid")])
