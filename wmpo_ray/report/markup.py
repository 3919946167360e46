"""HTML and SVG as nested calls. Every text that is not already `Markup` is escaped, so no caller has to remember to."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

__all__ = ["Markup", "datum", "escape", "join", "table", "tag"]

VOID_TAGS = frozenset({"img", "meta", "line", "circle", "rect", "polyline", "polygon"})


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Parts one after the other; None is left out."""
    return Markup(separator).join(escape(part) for part in parts if part is not None)


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element. `class_` and `for_` lose their underscore, other underscores turn into hyphens; None is left out."""
    pairs = join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), str(value))
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_TAGS and not children:
        return Markup(f"<{name}{pairs}>" if name in ("img", "meta") else f"<{name}{pairs}/>")
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def datum(value: float, text: str, **attributes: object) -> Markup:
    """A number as people read it, with its exact value for programs."""
    return tag("data", text, value=repr(value), **attributes)


def table(header: Iterable[object], rows: Iterable[Iterable[object]], numeric: Iterable[int] = ()) -> Markup:
    """A table; the columns in `numeric` are aligned on their numbers."""
    columns = frozenset(numeric)

    def row(cells: Iterable[object], name: str) -> Markup:
        return tag("tr", *(tag(name, cell, class_="num" if i in columns else None) for i, cell in enumerate(cells)))

    body = tag("tbody", *(row(cells, "td") for cells in rows))
    return tag("div", tag("table", tag("thead", row(header, "th")), body), class_="scroll")
