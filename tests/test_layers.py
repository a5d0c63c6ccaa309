"""The order of the rooms: who may import whom, and that nothing happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # a room imports from its own floor and those below
    "errors config files assets archive progress",
    "records complexity lean_base last_layer packed_linear delta mix",
    "dataset backbone adapter lean_lora lean_functions packed_attention kv_cache routers.base",
    "bank lobe embedding fits mixing xlora arrow tiers",
    "routers routers.* corrections serving scoring training generation xlora_training router_mlp experts",
    "bundle routing residency",
    "model",
    "evaluation evaluation.* composition composition.* comparison",
    "views prompt_map jobs feedback ledger answering lab studio",
    "ui ui.* cli cli_tables demo treebank __main__",
    "app",
)
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    .removeprefix("multilobe_ui.")
    .removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
    for path in [ROOT / "app.py", *(ROOT / "multilobe_ui").rglob("*.py")]
    if path != ROOT / "multilobe_ui" / "__init__.py"  # it names everything and imports nothing
}


def imports(room: str) -> set[str]:
    """Every module that a room imports: rooms by their short names, packages from outside by their first name."""
    first = room.split(".")[0]
    package = f"multilobe_ui.{first}" if first in ("composition", "evaluation", "routers", "ui") else "multilobe_ui"
    found = set()
    for node in ast.walk(TREES[room]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    ours = {name.removeprefix("multilobe_ui.") for name in found if name.startswith("multilobe_ui.")} & TREES.keys()
    # "from .routers.base import x" passes through the package, but asks for its room alone
    ours -= {name for name in ours if any(other.startswith(f"{name}.") for other in ours)}
    return (ours - {room}) | {name.split(".")[0] for name in found if not name.startswith("multilobe_ui")}


def floor(room: str) -> int:
    for names in (room, f"{room.split('.')[0]}.*"):
        for i, rooms in enumerate(FLOORS):
            if names in rooms.split():
                return i
    return pytest.fail(f"{room} has no place in FLOORS, nor in the order of design.md")


@pytest.mark.parametrize("room", sorted(TREES))
def test_arrows_point_down(room: str) -> None:
    assert [other for other in sorted(imports(room) & TREES.keys()) if floor(other) > floor(room)] == []


def test_no_room_needs_itself() -> None:
    TopologicalSorter({room: imports(room) & TREES.keys() for room in TREES}).prepare()  # raises CycleError


def test_pages_are_made_under_ui_only() -> None:
    makers = {room for room in TREES if imports(room) & {"gradio", "plotly"}}
    assert makers and [room for room in sorted(makers) if room.split(".")[0] not in ("ui", "app")] == []


def test_routers_do_not_know_each_other_nor_the_page() -> None:
    shared = {"routers.base", "routers.regression"}
    routers = [room for room in TREES if room.startswith("routers.") and room not in shared]
    assert len(routers) > 1
    for room in routers:
        ours = imports(room) & TREES.keys()
        assert "routers.base" in ours
        assert {name for name in ours if name.startswith(("routers", "ui", "studio"))} <= shared


def test_tabs_do_not_know_each_other_nor_torch() -> None:
    tabs = {room for room in TREES if room.startswith("ui.") and room.endswith("_tab")}
    assert len(tabs) > 1
    for room in TREES:
        if room.startswith("ui."):
            assert not imports(room) & {"torch", "transformers", "peft"}
    for room in tabs:
        assert not imports(room) & (tabs | {"ui.page"})


@pytest.mark.parametrize("room", sorted(TREES.keys() - {"__main__", "app"}))
def test_a_room_only_defines(room: str) -> None:
    """No statement at its top does anything, but for what Python itself asks: imports, names, and the script guard."""
    defining = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.FunctionDef, ast.ClassDef)
    for node in TREES[room].body:
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        optional = isinstance(node, ast.Try) and all(
            isinstance(child, (ast.Import, ast.ImportFrom)) for child in node.body
        )
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert isinstance(node, defining) or guard or optional or text, f"line {node.lineno}: {ast.unparse(node)}"


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    light = [
        "",
        *(
            f".{room}"
            for room in ("errors", "config", "files", "assets", "dataset", "lobe", "routers", "jobs", "complexity")
        ),
    ]
    heavy = "{'torch', 'transformers', 'peft', 'gradio', 'plotly', 'sentence_transformers', 'spacy', 'textstat'}"
    program = "; ".join(
        [*(f"import multilobe_ui{room}" for room in light), f"import sys; print(sorted({heavy} & set(sys.modules)))"]
    )
    environment = {"MULTILOBE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("[]\n", "", [])
