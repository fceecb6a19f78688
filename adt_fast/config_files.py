"""Settings in YAML files: those that come with the package, by name, and the user's own, by path."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ._settings.method_options import without_foreign_options
from ._support.checks import LONGEST_REASON, shown
from ._support.option_text import parse_number
from ._support.suggest import unknown_name_message
from .config import PLACES, TrainConfig

_DEEPEST = 20
_BUNDLED = resources.files("adt_fast") / "configs"
_NOT_SETTINGS = ("output",)  # a run's own folder is in use when its config.yaml is read again


def config_names() -> tuple[str, ...]:
    """The files that come with the package, by name."""
    names = (entry.name for entry in _BUNDLED.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def config_summary(name: str) -> str:
    """What a file of the package says of itself in its first line.

    Args:
        name: one of :func:`config_names`.
    """
    return (_BUNDLED / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")


@dataclass(frozen=True)
class ConfigFile:
    """Settings of a run, some of them or all.

    Args:
        source: where they come from, for messages.
        settings: fields of :class:`TrainConfig`, by name, in their types.
    """

    source: str
    settings: dict[str, Any]

    def settings_for(self, method: str) -> dict[str, Any]:
        """The settings for a method, without options that it does not have.

        So a file that names no method may hold options of several. One that names its method is taken at its word: a
        foreign option in it stays, and is an error.
        """
        return self.settings if "method" in self.settings else without_foreign_options(self.settings, method)

    def config(self, **changes: Any) -> TrainConfig:
        """The settings with some ``changes``, and the usual defaults for the rest."""
        method = changes.get("method", self.settings.get("method", TrainConfig.method))
        return TrainConfig(**(self.settings_for(method) | changes))


def load_config_file(source: str) -> ConfigFile:
    """Reads settings.

    A file is a mapping from settings, named as on the command line with ``_`` for ``-``, to values; numbers may be
    fractions such as 8/255. With ``extends: NAME``, it starts from another file: one of the package, or one beside it.
    The config.yaml of a run folder will do too, its output folder aside.

    Args:
        source: a path, or the name of a file of the package, see :func:`config_names`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if there is no such name, or the file is no mapping, has an unknown setting, or a value of the wrong
            type; the message names file and setting.
    """
    return ConfigFile(source, _load(source, Path(), ()))


def check_same_settings(config: TrainConfig, recorded: Mapping[str, Any], source: str) -> None:
    """Raises ValueError that names the first setting, with both values, in which a config is another than the one of a
    run. Where the run and its data are found is not compared.

    Args:
        config: resolved, as far as the settings compared depend on others.
        recorded: plain values by name, see :meth:`TrainConfig.as_dict`.
        source: of the recorded ones, for the message.
    """
    mine = config.as_dict()
    for name, value in recorded.items():
        if name not in PLACES and mine.get(name) != value:
            raise ValueError(f"{name} must be {shown(value)}, as in {source}, for a resumed run keeps its settings; "
                             f"got {mine.get(name)!r}")


def _load(source: str, beside: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    if source in seen:
        raise ValueError(f"{source} extends itself, by way of {' and '.join(seen)}")
    text, folder = _read(source, beside)
    try:
        content = yaml.load(text, _SettingsLoader)
    except Exception as error:  # YAML's own, and nearly any other for a text that is tagged as what it is not
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise ValueError(f"{source} is no YAML file: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source} must map settings to values, got {type(content).__name__}")
    if isinstance(content.get("config"), dict):  # config.yaml of a run folder
        content = {name: value for name, value in content["config"].items() if name not in _NOT_SETTINGS}
    parent = content.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise ValueError(f"{source}: extends must be the name of a file, got {shown(parent)}")
    its_name = "" if parent is None else parent[:200]
    try:
        inherited = {} if parent is None else _load(parent, folder, (*seen, source))
    except ValueError as error:
        raise error if source in str(error) else ValueError(f"{source} extends {its_name!r}: {error}") from error
    return inherited | {name: _converted(source, name, value) for name, value in content.items() if value is not None}


def _read(source: str, beside: Path) -> tuple[str, Path]:
    """The text, and the folder in which files that it extends are looked for."""
    path = beside / source
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path.parent
        except ValueError as error:  # a name with NUL in it, too
            raise ValueError(f"{source[:200]!r} is no text in UTF-8, or no name of a file ({error})") from None
    if source not in config_names():
        raise ValueError(unknown_name_message("config", source, config_names()) + ". A file's name ends in .yaml")
    return (_BUNDLED / f"{source}.yaml").read_text(encoding="utf-8"), Path()


class _SettingsLoader(yaml.SafeLoader):
    """YAML without what settings have no use for: names that come twice, nesting, and texts that stand for many times
    as much.

    An alias may stand for a plain value. One for a list of aliases for lists of aliases, and so on, would take all day
    to write into an error message.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if not isinstance(self.anchors.get(event.anchor), (yaml.ScalarNode, type(None))):
                raise yaml.composer.ComposerError(
                    None, None, f"found the alias {event.anchor[:80]!r} for more than a plain value", event.start_mark
                )
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"found more than {_DEEPEST} levels", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            raise yaml.constructor.ConstructorError(None, None, f"found {twice[:80]!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _converted(source: str, name: Any, value: Any) -> Any:
    hints = _type_hints()
    if name not in hints:
        raise ValueError(f"{source}: {unknown_name_message('setting', str(name), sorted(hints))}")
    kinds = _kinds(hints[name])
    for kind in kinds:
        try:
            return _CONVERSIONS[kind](value)
        except (ValueError, OverflowError):
            continue
    wanted = " or ".join(_WORDS[kind] for kind in kinds)
    raise ValueError(f"{source}: {name} must be {wanted}, got {shown(value)}")


@cache
def _type_hints() -> dict[str, Any]:
    """Of every setting; the help texts in them are put together from all methods, which takes a moment."""
    return get_type_hints(TrainConfig)


def _kinds(hint: Any) -> list[type]:
    """The plain types that a field's annotation admits."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for option in get_args(hint) if option is not type(None) for kind in _kinds(option)]
    return [str] if get_origin(hint) is Literal else [hint]


def _exactly(*kinds: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError
        return value

    return convert


def _number(value: Any) -> float:
    # YAML takes 2e-4 and 8/255 for texts.
    return parse_number(value) if isinstance(value, str) else float(_exactly(int, float)(value))


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    bool: _exactly(bool),
    int: _exactly(int),
    float: _number,
    str: _exactly(str),
    Path: lambda value: Path(_exactly(str)(value)),
}

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
