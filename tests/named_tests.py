"""Tests as the pages of docs/ name them: ``test_noise.py``, ``test_noise.py::test_reference_philox``."""

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


def is_there(name: str) -> bool:
    file, _, function = name.partition("::")
    return (TESTS / file).exists() and (not function or function in functions(file))


@cache
def functions(file: str) -> set[str]:
    return {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)}
