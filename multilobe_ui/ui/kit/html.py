"""HTML that is escaped unless it says that it is HTML: what a person wrote (a lobe's name, a
prompt) can never become a tag.

Every function of the page that returns HTML returns `Markup`, made here. A test keeps templates out
of f-strings.
"""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape


def html(template: str, *values: object, **named: object) -> Markup:
    """A template filled in like `str.format`: values that are not `Markup` themselves are escaped.

    `html('<p class="{}">{}</p>', style, name)`. The template is a literal of ours, never a text
    from elsewhere.
    """
    return Markup(template).format(*values, **named)


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """The parts one after another; those that are not `Markup` are escaped. `between` is a literal
    of ours."""
    return Markup(between).join(parts)


def around(template: str, inside: object) -> Markup:
    """`html(template, inside)`, and nothing where there is nothing inside: an empty element would
    leave a gap."""
    if not inside:
        return Markup()
    return html(template, inside)


def and_more(template: str, left_out: int) -> Markup:
    """`html(template, left_out)` at the end of a list that was cut short; nothing where nothing was
    left out."""
    return around(template, max(0, left_out))


__all__ = ["Markup", "and_more", "around", "escape", "html", "joined"]
