"""HTML read as a tree, so that a test can ask what a page says, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "img", "input", "hr", "meta", "link"}


@dataclass
class Node:
    """An element; `parts` are its texts and elements in order."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    parts: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, but for style sheets and titles, with single spaces."""
        found = "".join(p if isinstance(p, str) else f" {p.text} " for p in self.parts if isinstance(p, str) or p.tag not in HIDDEN)
        return " ".join(found.split())

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def all(self, tag: str = "", kind: str = "") -> list[Node]:
        """Elements in it of this tag and class."""
        return [n for n in self.walk() if (not tag or n.tag == tag) and (not kind or kind in n.classes)]

    def one(self, tag: str = "", kind: str = "") -> Node:
        found = self.all(tag, kind)
        assert len(found) == 1, f"{len(found)} of {tag}.{kind}"
        return found[0]

    def rows(self) -> list[list[Node]]:
        """Cells of every table row in it."""
        return [[c for c in row.parts if isinstance(c, Node) and c.tag in ("td", "th")] for row in self.all("tr")]

    def walk(self) -> Iterator[Node]:
        for part in self.parts:
            if isinstance(part, Node):
                yield part
                yield from part.walk()


HIDDEN = {"style", "title"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read(html: str) -> Node:
    """The tree. Fails for tags that are not closed in order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    return reader.root
