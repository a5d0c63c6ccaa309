"""Prints how large and how dense the package is: `python tests/size.py [--all]`. `test_size.py` holds what must not grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION, WIDEST_LINE = 400, 300, 60, 110


@dataclass
class Size:
    """What was counted. `large` names what is longer than it should be, `chained` conditional expressions inside others."""

    files: int = 0
    lines: int = 0
    wide: int = 0
    conditionals: int = 0
    chained: list[str] = field(default_factory=list)
    large: list[tuple[int, str]] = field(default_factory=list)

    @property
    def wide_percent(self) -> float:
        return 100 * self.wide / self.lines

    @property
    def conditionals_per_100_lines(self) -> float:
        return 100 * self.conditionals / self.lines

    def __str__(self) -> str:
        return (
            f"{self.lines:,} lines in {self.files} files, {self.wide_percent:.1f} % over {WIDEST_LINE} columns, "
            f"{self.conditionals_per_100_lines:.1f} conditional expressions in 100 lines, {len(self.chained)} chained"
        )


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def size_of(files: list[Path]) -> Size:
    size = Size()
    for file in files:
        source, name = file.read_text(), str(file.relative_to(ROOT))
        lines = source.splitlines()
        size.files += 1
        size.lines += len(lines)
        size.wide += sum(len(line) > WIDEST_LINE for line in lines)
        if len(lines) > LONGEST_FILE:
            size.large.append((len(lines), name))
        for node in ast.walk(ast.parse(source)):
            size.large.extend((length, f"{name}: {what}") for length, what in _too_long(node))
            if isinstance(node, ast.IfExp):
                size.conditionals += 1
                if isinstance(node.body, ast.IfExp) or isinstance(node.orelse, ast.IfExp):
                    size.chained.append(f"{name}:{node.lineno}")
    return size


def _too_long(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        length = (node.end_lineno or 0) - node.lineno + 1
        most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
        if length > most:
            yield length, node.name


def main() -> None:
    """The package and the tests as wholes; with --all also each folder of the package."""
    for folder in ("multilobe_ui", "tests"):
        print(f"{folder}: {size_of(python_files(folder))}")
    package = size_of(python_files("multilobe_ui"))
    for length, name in sorted(package.large, reverse=True):
        print(f"  {length:>4} {name}")
    for place in package.chained:
        print(f"  chained {place}")
    if "--all" in sys.argv:
        for folder in sorted(path for path in (ROOT / "multilobe_ui").rglob("*") if any(path.glob("*.py"))):
            print(f"  {folder.relative_to(ROOT)}: {size_of(sorted(folder.glob('*.py')))}")


if __name__ == "__main__":
    main()
