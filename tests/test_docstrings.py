"""Docstrings tell a caller what there is to know: every parameter, the shapes of tensors, the errors that are raised,
and for attacks and methods where they are from."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adt_fast import attacks, methods

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.reference.api import attributes, constructor_parameters, members, public_modules, public_objects
from tools.reference.docstrings import with_entries

OBJECTS = [one for module in public_modules() for one in public_objects(module) if one.home == module.__name__]
DOCSTRINGS = {one.title: one.docstring for one in OBJECTS}
CLASSES = [one for one in OBJECTS if isinstance(one.value, type)]


@dataclass(frozen=True)
class Described:
    """A function, a constructor or a method, with the texts that describe it.

    Args:
        title: its name.
        parameters: without self.
        function: what is called; None for a constructor that a dataclass makes.
        own: its docstring, and for a constructor the texts below the fields.
        around: the docstrings of its class and of its module, and those of the methods that it overrides.
    """

    title: str
    parameters: tuple[inspect.Parameter, ...]
    function: Callable[..., Any] | None
    own: str
    around: str

    @property
    def whole(self) -> str:
        """Also what its own docstring and those around it refer to, and what that refers to."""
        text = f"{self.own}\n{self.around}"
        module, _, name = self.title.rpartition(".")
        if module == "adt_fast.reference":  # whose docstring refers to the operators of the same name
            text += DOCSTRINGS.get(f"adt_fast.ops.{name}", "")
        return with_what_it_names(with_what_it_names(text))


def all_described() -> Iterator[Described]:
    for one in OBJECTS:
        homes = {one.home, getattr(one.value, "__module__", one.home)}
        module = "\n".join(inspect.getdoc(sys.modules[home]) or "" for home in sorted(homes))
        if inspect.isfunction(one.value):
            yield Described(one.title, parameters_of(one.value), one.value, one.docstring, module)
        if isinstance(one.value, type):
            own = with_attributes(one)
            made = "__post_init__" if is_dataclass(one.value) else "__init__"
            parameters = tuple(constructor_parameters(one.value) or ())
            yield Described(one.title, parameters, vars(one.value).get(made), own, module)
            for name, value in members(one.value).items():
                function = getattr(value, "fget", getattr(value, "func", getattr(value, "__func__", value)))
                bases = [base for base in one.value.__mro__[1:] if hasattr(base, name)]
                around = "\n".join([own, *(getattr(base, name).__doc__ or "" for base in bases), module])
                text = inspect.getdoc(value) or ""
                yield Described(f"{one.title}.{name}", parameters_of(function), function, text, around)


def parameters_of(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(one for one in inspect.signature(function).parameters.values() if one.name not in ("self", "cls"))


def with_attributes(one: Any) -> str:
    """The docstring of a public object, and the names and texts of its attributes."""
    texts = attributes(one.value).items() if isinstance(one.value, type) else ()
    return "\n".join([one.docstring, *(f"{name}: {text}" for name, text in texts)])


@cache
def with_what_it_names(text: str) -> str:
    """And the docstrings of the public objects that it names as code."""
    names = set(re.findall(r"`~?([\w.]+)`", text))
    return "\n".join([text, *(with_attributes(one) for one in OBJECTS if one.title in names or one.name in names)])


DESCRIBED = list(all_described())


def test_every_public_module_and_name_has_a_docstring():
    assert [module.__name__ for module in public_modules() if not inspect.getdoc(module)] == []
    assert [title for title, docstring in DOCSTRINGS.items() if not docstring] == []
    assert [one.title for one in DESCRIBED if not one.own] == []


def test_every_parameter_is_described():
    missing = []
    for one in DESCRIBED:
        names = {parameter.name for parameter in one.parameters}
        known = set(with_entries(one.whole))
        if not names & with_entries(one.own).keys():  # in a sentence, then, or as code in the text around it
            known |= set(re.findall(r"\w+", one.own.lower() + " ".join(re.findall(r"``([^`]+)``", one.around))))
        missing += [f"{one.title}: {name}" for name in sorted(names - known)]
    assert missing == []


def test_every_tensor_has_a_shape():
    without = []
    for one in DESCRIBED:
        entries = with_entries(one.whole)
        without += [
            f"{one.title}: {parameter.name}"
            for parameter in one.parameters
            if is_tensor(parameter.annotation) and not has_shape(entries.get(parameter.name, one.own), one.whole)
        ]
        returns = one.function and inspect.signature(one.function).return_annotation
        if is_tensor(returns) and not has_shape(one.own, one.whole):
            without.append(f"{one.title}: what it returns")
    for one in CLASSES:
        texts = attributes(one.value)
        without += [f"{one.title}.{name}" for name, annotation in getattr(one.value, "__annotations__", {}).items()
                    if name in texts and is_tensor(annotation) and not has_shape(texts[name], with_attributes(one))]
    assert without == []


def is_tensor(annotation: Any) -> bool:
    """Whether it is one, or a tuple of them, or perhaps None; not a function of tensors."""
    text = getattr(annotation, "__forward_arg__", annotation)  # of a NamedTuple's field
    if not isinstance(text, str):
        return False
    return bool(re.search(r"\bTensor\b", text)) and not re.search("Callable|Itera|Mapping|dict|Batches", text)


def has_shape(text: str, whole: str) -> bool:
    """Whether a text tells a shape in brackets, or that it is a number, or whose shape it is, which the whole tells."""
    told = re.compile(r"\[(\w|\*|ceil)[^\]]*\]|\ba number|\bone number|\bany shape", re.IGNORECASE)
    as_another = re.search(r"\b(like|as|see|those of|same)\b|:(func|meth|class):", text)
    return bool(told.search(text) or (as_another and told.search(whole)))


def test_what_raises_an_error_says_so():
    unsaid = []
    for one in DESCRIBED:
        text = one.own if re.search(r"\b[Rr]aise", one.own) else one.whole
        unsaid += [
            f"{one.title}: {error}"
            for error in sorted(raised_by(one.function) if one.function else ())
            if not re.search(r"\b[Rr]aise", text) or not re.search(error, text)
        ]
    assert unsaid == []


def raised_by(function: Callable[..., Any]) -> set[str]:
    """Patterns of the errors that a function raises itself, or by one of the package's checks."""
    errors = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            errors.add(node.exc.func.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("check_"):
            errors.add("(Type|Value)Error")
    return errors


def test_attacks_and_methods_say_where_they_are_from():
    kinds = [kind for kind in vars(attacks).values() if isinstance(kind, type) and issubclass(kind, attacks.Attack)]
    parts = {kind.__name__: [kind] for kind in (*kinds, attacks.AutoAttack, attacks.Transfer)}
    specs = [methods.method_spec(name) for name in methods.method_names() if name != "standard"]
    parts |= {spec.name: [spec.maximizer] for spec in specs}
    summaries = {spec.name: spec.summary for spec in specs}
    texts = {name: " ".join([summaries.get(name, ""), *map(texts_of, some)]) for name, some in parts.items()}
    assert len(texts) > 20
    assert [name for name, text in texts.items() if name != "Attack" and not ORIGIN.search(text)] == []


ORIGIN = re.compile(r"(Section|Eq\.|Table|Algorithm) \w|\(.*, \d{4}[);]")
"""A place in the paper, or another publication, as in "(Madry et al., 2018)"."""


def texts_of(value: Any) -> str:
    """The docstrings of a class or a function and of its module, and what its own names."""
    value = getattr(value, "func", value)
    return with_what_it_names(inspect.getdoc(value) or "") + (inspect.getdoc(sys.modules[value.__module__]) or "")
