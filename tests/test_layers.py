"""The rooms of the package: who may import whom, what stays inside which, and that nothing happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDER = """
    assets errors evenly files lazily progress recent settings
    base data
    lobes
    generation routing training
    bundles routers
    answers
    model
    evaluation
    merging
    app
    recipes ui
    cli
"""
"""A room imports from rooms above it here; those in the first line also from each other."""
LEVEL = {room: level for level, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
    for path in (ROOT / "multilobe_ui").rglob("*.py")
    if path.parent != ROOT / "multilobe_ui" or path.stem not in ("__init__", "__main__")
}
PACKAGES = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "multilobe_ui").rglob("__init__.py")}


def imports(module: str) -> Iterator[str]:
    """Modules that a module imports, ours and others', by their full names."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            modules = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in TREES]
            yield from modules or [source]


def room(module: str) -> str:
    return module.split(".")[1]


def users(*packages: str) -> set[str]:
    """Modules that import one of these packages."""
    return {module for module in TREES if {name.split(".")[0] for name in imports(module)} & set(packages)}


def test_every_room_has_its_place() -> None:
    assert {room(module) for module in TREES} == LEVEL.keys()


def test_rooms_import_rooms_above_them_in_the_order() -> None:
    arrows = {(m, o) for m in TREES for o in imports(m) if o in TREES and room(o) != room(m)}
    assert [(m, o) for m, o in sorted(arrows) if LEVEL[room(o)] >= max(LEVEL[room(m)], 1)] == []


def test_no_module_needs_itself() -> None:
    needs = {m: {o for o in imports(m) if o in TREES and o != m} for m in TREES if m not in PACKAGES}
    TopologicalSorter(needs).prepare()  # raises CycleError


def test_pages_are_made_in_ui_only() -> None:
    assert {room(module) for module in users("gradio", "plotly")} == {"ui"}
    assert not {module for module in users("torch", "transformers", "peft") if room(module) == "ui"}


def test_the_base_is_behind_its_room() -> None:
    inner = {m for m in TREES if any(name.startswith("transformers.") for name in imports(m))}
    assert {room(module) for module in inner} == {"base"}


def test_routers_do_not_know_each_other() -> None:
    for module in TREES:
        place = module.split(".")
        if place[1:2] == ["routers"] and len(place) > 2 and place[2] not in ("fitted", "kept"):
            others = {o.split(".")[2] for o in imports(module) if o.startswith("multilobe_ui.routers.")} - {place[2]}
            assert others <= {"logprob"}, module  # the hybrid router reads as it does


def test_tabs_do_not_know_each_other() -> None:
    tabs = {"chat", "train", "routers", "lab", "manage"}
    for module in TREES:
        place = module.split(".")
        if place[1] == "ui" and place[2:3] and place[2] in tabs:
            assert {o.split(".")[2] for o in imports(module) if o.startswith("multilobe_ui.ui.")} <= {place[2], "kit"}


def test_a_module_only_defines() -> None:
    """No statement at its top does anything, but for what Python itself asks: imports, names, and the script guard."""
    defining = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.FunctionDef, ast.ClassDef)
    for module, tree in TREES.items():
        for node in tree.body:
            guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            optional = isinstance(node, ast.Try) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in node.body)
            assert isinstance(node, defining) or guard or text or optional, f"{module}, line {node.lineno}"


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    light = [
        *("errors", "settings", "files", "assets", "data.dataset", "lobes.store"),
        *("routers", "app.jobs", "routers.complexity.features"),
    ]
    heavy = "{'torch', 'transformers', 'peft', 'gradio', 'plotly', 'sentence_transformers', 'spacy', 'textstat'}"
    program = "".join(f"import multilobe_ui.{module}; " for module in light)
    program = f"import multilobe_ui; {program}import sys; print(sorted({heavy} & set(sys.modules)))"
    environment = {"MULTILOBE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("[]\n", "", [])
