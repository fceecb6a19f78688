"""Docstrings as the source has them, those of attributes and constants included, which Python does not keep."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from itertools import pairwise, takewhile
from types import ModuleType


def documented_names(owner: type | ModuleType) -> dict[str, str]:
    """The texts below the assignments in the body of a class or module, by the name that is assigned."""
    body = _body(owner)
    texts = {}
    for statement, below in pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            texts |= dict.fromkeys(_assigned(statement), inspect.cleandoc(below.value.value))
    return texts


def defined_names(module: ModuleType) -> dict[str, ast.stmt]:
    """What a module defines, in its order: functions, classes, constants."""
    names: dict[str, ast.stmt] = {}
    for statement in _body(module):
        defined = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        names |= dict.fromkeys([statement.name] if defined else _assigned(statement), statement)
    return names


def as_prose(text: str) -> str:
    """A text for Markdown: the roles of reST become code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)


def first_paragraph(text: str) -> str:
    """On one line."""
    return " ".join(text.split("\n\n")[0].split())


def with_entries(text: str) -> dict[str, str]:
    """What a docstring says of each name in lines such as ``lower, upper: the data bounds.``, with what is below them
    and further in."""
    entries: dict[str, str] = {}
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if match := re.match(r"(\s*)((?:\*{0,2}\w+, )*\*{0,2}\w+): (.*)", line):
            indent, names, rest = match.groups()
            said = " ".join([rest, *_further_in(indent, lines[place + 1 :])])
            for name in names.replace("*", "").split(", "):
                entries[name] = f"{entries.get(name, '')} {said}".strip()
    return entries


def _further_in(indent: str, lines: list[str]) -> list[str]:
    """The first of the lines, as far as they are indented more."""
    return [line.strip() for line in takewhile(lambda one: not one.strip() or one.startswith(f"{indent} "), lines)]


@cache
def _body(owner: type | ModuleType) -> list[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return tree.body if isinstance(owner, ModuleType) else tree.body[0].body


def _assigned(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
