"""The files of `ui/static`: stylesheets of the whole page, and scripts of single elements."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "static"
FIRST = ("theme.css",)
LAST = ("table.css", "train.css", "routers.css", "manage.css")
"""Of two rules of equal weight the later one counts: so these overrule those of the Lab."""
FOR_ITSELF = "taken_away.css"
"""Only for a page that stands by itself."""


def stylesheets(*more: str) -> str:
    """All stylesheets of the page as one, after these `more`."""
    others = {path.name for path in FOLDER.glob("*.css")}.difference(FIRST, LAST, [FOR_ITSELF])
    return "\n".join(map(_text, (*more, *FIRST, *sorted(others), *LAST)))


def script(name: str) -> str:
    """A script: what runs once in a gr.HTML (`js_on_load`), or a function that an event calls (`js`)."""
    return _text(f"{name}.js")


def scroll_to(selector: str) -> str:
    """A function for an event: scroll until the element can be seen, and hand the event's values on."""
    return script("scroll_to").replace("SELECTOR", selector)


def _text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")
