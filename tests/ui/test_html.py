"""What a person wrote cannot become a tag: HTML is made by type, in `ui/kit/html.py`, and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from multilobe_ui.ui.kit.html import Markup, and_more, around, html, joined

UI = Path(__file__).parents[2] / "multilobe_ui/ui"
TAG = re.compile("<[a-zA-Z/]")
MAKERS = {"html", "around", "and_more", "Markup"}
PENDING: tuple[str, ...] = ()
"""Folders of which it does not hold yet."""
FILES = [
    path for path in sorted(UI.rglob("*.py")) if path.name != "html.py" and path.relative_to(UI).parts[0] not in PENDING
]


def hand_made(tree: ast.AST) -> Iterator[int]:
    """Lines with a tag in a string that is no literal template of a maker, and no docstring."""
    proper = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS and node.args
    }
    proper |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TAG.search(node.value) and id(node) not in proper:
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UI)))
def test_tags_are_in_literal_templates_only(path):
    source = path.read_text("utf-8")
    assert not list(hand_made(ast.parse(source)))
    by_hand = re.search("^import html$", source, re.M)
    assert not by_hand or path.name == "guard.py", "toasts of errors are text, escaped where they are raised"


def test_tags_made_by_hand_are_found():
    made = ['f"<b>{x}</b>"', '"<b>%s" % x', '"<b>{}".format(x)', '"<b>" + x', 'html(f"<b>{x}")', 'html("<b>" + x)']
    assert all(list(hand_made(ast.parse(source))) for source in made)
    assert not list(hand_made(ast.parse('html("<b>{}</b>", name)\nMarkup("<br>")\n"""Of <b>."""')))


def test_values_are_escaped_once():
    evil = "<img src=x onerror='alert(1)'>&\""
    once = "&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&amp;&#34;"
    row = html('<li title="{}">{}</li>', evil, evil)
    assert row == f'<li title="{once}">{once}</li>'
    assert html("<ul>{}</ul>", joined([row, evil])) == f"<ul>{row}{once}</ul>"
    assert isinstance(joined([evil]), Markup)


def test_what_would_be_empty_is_left_out():
    assert around("<p>{}</p>", "") == around("<p>{}</p>", Markup()) == and_more("<p>{} more</p>", 0) == and_more("{}", -2) == ""
    assert around("<p>{}</p>", "a&b") == "<p>a&amp;b</p>" and and_more("and {:,} more", 1200) == "and 1,200 more"
