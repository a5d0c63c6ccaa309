"""The package stays readable: what `python tests/size.py` prints must not grow."""

from __future__ import annotations

import pytest
from size import Size, python_files, size_of


@pytest.fixture(scope="module")
def package() -> Size:
    return size_of(python_files("multilobe_ui"))


def test_no_file_class_or_function_is_too_long(package: Size) -> None:
    assert package.large == []


def test_conditional_expressions_are_few_and_never_in_one_another(package: Size) -> None:
    assert package.chained == []
    assert package.conditionals_per_100_lines <= 1.5


def test_lines_are_short(package: Size) -> None:
    assert package.wide_percent <= 2.0
