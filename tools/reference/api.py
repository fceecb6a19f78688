"""docs/api.md: what the public modules of adt_fast have, with signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import adt_fast

from .docstrings import as_prose, defined_names, documented_names, first_paragraph

INTERNAL = frozenset({"cli", "commands"})  # docs/options.md
"""Modules of adt_fast that are for its own use; so are those whose names begin with an underscore."""

_BELOW = ("adt_fast.compat.foolbox", "adt_fast.compat.torchattacks")

_INTRODUCTION = """\
# Python API

`python -m tools.reference` writes this page from the signatures and docstrings. Modules that are not here, and names
that begin with an underscore, may change without notice. What stands in several modules is described once.
"""

_WIDTH = 120


@dataclass(frozen=True)
class PublicObject:
    """A function, class, constant or module that a public module has.

    Args:
        module: the public module, by name.
        name: in that module.
        value: the object.
        home: the public module that it is described under.
        docstring: its own, or the text below the assignment; empty where it has none.
    """

    module: str
    name: str
    value: Any
    home: str
    docstring: str

    @property
    def title(self) -> str:
        """Where it is described."""
        return self.home if inspect.ismodule(self.value) else f"{self.home}.{self.name}"


@cache
def public_modules() -> tuple[ModuleType, ...]:
    """adt_fast first, then the others in alphabetical order."""
    found = [info.name for info in pkgutil.iter_modules(adt_fast.__path__)]
    public = [f"adt_fast.{name}" for name in found if name[0] != "_" and name not in INTERNAL]
    return (adt_fast, *map(importlib.import_module, sorted([*public, *_BELOW])))


@cache
def public_objects(module: ModuleType) -> tuple[PublicObject, ...]:
    """What a public module has: the names of its ``__all__``, or else what it defines itself."""
    defined = [name for name in defined_names(module) if not name.startswith("_")]
    names = getattr(module, "__all__", defined)
    return tuple(_public_object(module, name) for name in names if name != "__version__")


def members(kind: type) -> dict[str, Any]:
    """Public methods and properties, by name, of a class and of those of its bases that are not described."""
    found: dict[str, Any] = {}
    for base in _described_with(kind):
        found |= {name: value for name, value in vars(base).items() if _is_member(name, value)}
    return found


def attributes(kind: type) -> dict[str, str]:
    """The texts below the attributes of a class and of those of its bases that are not described."""
    found: dict[str, str] = {}
    for base in _described_with(kind):
        found |= {name: text for name, text in documented_names(base).items() if not name.startswith("_")}
    return found


def api_page() -> str:
    """The text of the page."""
    modules = public_modules()
    contents = (f"- [{module.__name__}](#{_anchor(module.__name__)}): {_summary(module)}" for module in modules)
    return "\n".join([_INTRODUCTION, *contents, "", *map(_section, modules)])


def _section(module: ModuleType) -> str:
    objects = public_objects(module)
    elsewhere = [one for one in objects if one.home != module.__name__]
    lines = [f"## {module.__name__}", "", as_prose(inspect.getdoc(module) or ""), ""]
    if elsewhere:
        links = ", ".join(f"[`{one.name}`](#{_anchor(one.title)})" for one in elsewhere)
        lines += [f"Also here: {links}.", ""]
    lines += [_description(one) for one in objects if one.home == module.__name__]
    return "\n".join(lines)


def _description(one: PublicObject) -> str:
    paragraph, _, rest = one.docstring.partition("\n\n")
    blocks = [_signature(one), rest.rstrip()]
    if isinstance(one.value, type):
        blocks.append(_attributes(one.value))
        blocks += [_member(one.name, name, value) for name, value in members(one.value).items()]
    block = "\n\n".join(text for text in blocks if text)
    return as_prose(f"### {one.title}\n\n{first_paragraph(paragraph)}\n\n```text\n{block}\n```\n")


def _attributes(kind: type) -> str:
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in attributes(kind).items())


def _member(owner: str, name: str, value: Any) -> str:
    text = textwrap.indent(inspect.getdoc(value) or "", "    ")
    if isinstance(value, (property, cached_property)):
        return f"{owner}.{name}\n{text}"
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    parameters = list(inspect.signature(function).parameters.values())
    shown = parameters if isinstance(value, staticmethod) else parameters[1:]
    title = owner if name == "__call__" else f"{owner}.{name}"
    return f"{_call(title, shown, inspect.signature(function).return_annotation)}\n{text}"


def _described_with(kind: type) -> list[type]:
    """The class after those of its bases that are the package's and no public classes of their own."""
    public = {one.value for module in public_modules() for one in public_objects(module) if isinstance(one.value, type)}
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("adt_fast.") and base not in public]
    return [*reversed(bases), kind]


def _signature(one: PublicObject) -> str:
    if isinstance(one.value, type):
        parameters = constructor_parameters(one.value)
        base = "" if one.value.__base__ is object else f"({one.value.__base__.__name__})"
        return f"class {one.name}{base}" if parameters is None else _call(one.name, parameters)
    if inspect.isfunction(one.value):
        signature = inspect.signature(one.value)
        return _call(one.name, list(signature.parameters.values()), signature.return_annotation)
    statement = _assignment(one.value, one.name)
    text = f"{one.name} = {ast.unparse(statement.value)}" if isinstance(statement, ast.Assign) else one.name
    return text if len(text) <= _WIDTH else one.name


def constructor_parameters(kind: type) -> list[inspect.Parameter] | None:
    """Those of a class whose constructor is the package's own, else None."""
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    if not owner.__module__.startswith("adt_fast") or getattr(kind, "_is_protocol", False):
        return None
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    made = fields(kind) if is_dataclass(kind) else ()
    factories = {field.name: field.default_factory for field in made if field.default_factory is not MISSING}
    return [one.replace(default=factories[one.name]()) if one.name in factories else one for one in parameters]


def _call(name: str, parameters: list[inspect.Parameter], returns: Any = inspect.Signature.empty) -> str:
    words, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
        keyword_only |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        words.append(_parameter(parameter))
    arrow = "" if returns in (inspect.Signature.empty, "None", None) else f" -> {_annotation(returns)}"
    line = f"{name}({', '.join(words)}){arrow}"
    return line if len(line) <= _WIDTH else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    return text if parameter.default is parameter.empty else f"{text} = {_default(parameter.default)}"


def _default(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer() and (value * 255).is_integer():
        return f"{value * 255:.0f}/255"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    return repr(value)


class _WithoutMarkers(ast.NodeTransformer):
    """Annotated[X, ...] is X; what follows is for the command line."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated":
            return self.visit(node.slice.elts[0])
        if isinstance(node.value, ast.Attribute) and ast.unparse(node.value).startswith("tyro.conf."):
            return self.visit(node.slice)
        return self.generic_visit(node)


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return ast.unparse(_WithoutMarkers().visit(ast.parse(text, mode="eval")))


def _public_object(module: ModuleType, name: str) -> PublicObject:
    value = getattr(module, name)
    if inspect.ismodule(value):
        return PublicObject(module.__name__, name, value, value.__name__, inspect.getdoc(value) or "")
    if isinstance(value, type) or inspect.isfunction(value):
        return PublicObject(module.__name__, name, value, _home(module, name, value.__module__), _own_docstring(value))
    source = _defining_module(value, name)
    text = "" if source is None else documented_names(source).get(name, "")
    return PublicObject(module.__name__, name, value, _home(module, name, source.__name__ if source else ""), text)


def _own_docstring(value: Callable[..., Any]) -> str:
    """Not one that is inherited, nor the signature that a dataclass gets for want of one."""
    text = inspect.cleandoc(vars(value).get("__doc__") or "") if isinstance(value, type) else inspect.getdoc(value)
    return "" if not text or text.startswith(f"{value.__name__}(") else text


def _home(module: ModuleType, name: str, defined_in: str) -> str:
    """The innermost public module around the one that defines it, of those that have the name."""
    having = [one.__name__ for one in public_modules() if name in getattr(one, "__all__", defined_names(one))]
    around = [one for one in having if f"{defined_in}.".startswith(f"{one}.")]
    return max(around, key=len, default=module.__name__)


def _defining_module(value: Any, name: str) -> ModuleType | None:
    for module in [module for key, module in sorted(sys.modules.items()) if key.split(".")[0] == "adt_fast"]:
        if vars(module).get(name) is value and name in defined_names(module):
            return module
    return None


def _assignment(value: Any, name: str) -> ast.stmt | None:
    module = _defining_module(value, name)
    return None if module is None else defined_names(module)[name]


def _is_member(name: str, value: Any) -> bool:
    callable_or_property = inspect.isfunction(value) or isinstance(
        value, (property, cached_property, classmethod, staticmethod)
    )
    return callable_or_property and (name == "__call__" or not name.startswith("_"))


def _summary(module: ModuleType) -> str:
    return as_prose(first_paragraph(inspect.getdoc(module) or ""))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return title.lower().replace(".", "")
