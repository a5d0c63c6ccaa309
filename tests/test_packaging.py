"""What an installation carries, and that the lists of dependencies agree."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import multilobe_ui
from multilobe_ui.assets import builtin_base, demo_bundle, folder, sample_files

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_spaces_installs_what_pyproject_asks_for() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["project"]["dependencies"]


def test_the_front_matter_fits() -> None:
    front = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    version = re.search(r"sdk_version: (\d+)\.(\d+)", front)
    assert version is not None
    assert f"gradio>={version[1]}.{version[2]},<{int(version[1]) + 1}" in PROJECT["project"]["dependencies"]
    assert "app_file: app.py" in front
    short = re.search(r"short_description: (.*)", front)
    assert short is not None and len(short[1]) <= 60  # the hub refuses more


def test_the_wheel_carries_the_assets() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in included.items():
        assert (ROOT / source).exists(), source
        assert target == f"multilobe_ui/shipped/{source}"  # where `assets.folder` looks


def test_every_asset_is_found() -> None:
    assert (builtin_base() / "model.safetensors").is_file()
    assert (demo_bundle() / "bundle.json").is_file()
    assert (folder("assets") / "generic_prompts.jsonl").is_file()
    assert len(sample_files()) == 6


def test_version() -> None:
    assert multilobe_ui.__version__ == PROJECT["project"]["version"]


def test_every_file_that_the_readme_shows_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


def test_what_the_readme_imports_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(("import ", "from "))]
    assert len(lines) >= 5
    for line in lines:
        exec(line, {})


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Files")[1].split("```")[1]
    package = ROOT / "multilobe_ui"
    folders = {path.parent for path in package.rglob("__init__.py")} - {package}
    rooms = {folder for folder in folders if folder.parent == package and folder.name != "recipes"}
    modules = {path.stem for room in {package, *rooms} for path in room.glob("[!_]*.py")}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", text)] == []
    assert [folder.name for folder in sorted(folders) if f"{folder.name}/" not in text] == []


@pytest.mark.parametrize("package", ["multilobe_ui", "multilobe_ui.evaluation", "multilobe_ui.merging"])
def test_what_a_package_names_is_there(package: str) -> None:
    module = import_module(package)
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    with pytest.raises(AttributeError, match="nobody"):
        module.nobody  # noqa: B018


def test_the_readme_says_where_things_are() -> None:
    """Who may delete a lobe, the page's CSS, how a GPU is chosen: each at the place that the README names, and nowhere else."""
    text, package = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "multilobe_ui"
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    places = {
        "app/visitors.py": "belongs to somebody else or to the demo",
        "base/device.py": "cuda.is_available()",
    }
    for place, sign in places.items():
        assert f"`{place}`" in text
        assert [name for name, source in sources.items() if sign in source] == [place]
    assert "`ui/static/`" in text
    assert {path.parent.name for path in package.rglob("*.css")} == {"static"}
