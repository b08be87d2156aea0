"""Trees of plain values <-> frozen configuration dataclasses (`config_fields` declares their fields).

Strict on purpose: a bool is not an int, a misspelt name is an error that offers the nearest valid one, and a field that follows from
others cannot be set.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from vpp_jax.common.config_fields import LARGEST, FieldError, type_name
from vpp_jax.common.errors import ConfigError, nearest


def build(kind: type, tree: Any, path: str = "") -> Any:
    """A dataclass of type `kind` from a mapping; fields that are absent take their defaults. `path` is its dotted name, for errors."""
    where = path or "the configuration"
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where} is {_show(tree)}, expected a group of fields: {', '.join(_valid_names(kind))}")
    for name in tree:
        check_name(kind, str(name), path)
    hints = typing.get_type_hints(kind)
    values = {name: _convert(hints[name], tree[name], _join(path, name)) for name in tree}
    try:
        return kind(**values)
    except FieldError as error:
        raise ConfigError(_join(path, str(error))) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


def to_tree(config: Any) -> dict[str, Any]:
    """The inverse of `build`: nested dicts, derived fields left out, tuples as they are."""
    return {entry.name: _plain(getattr(config, entry.name)) for entry in dataclasses.fields(config) if not _source(entry)}


def check_name(kind: type, name: str, path: str = "") -> None:
    """ConfigError unless dataclass `kind`, at the dotted name `path`, has a field `name` that can be set."""
    field = next((entry for entry in dataclasses.fields(kind) if entry.name == name), None)
    if field is None:
        valid = _valid_names(kind)
        hint = nearest(name, valid) or "."
        raise ConfigError(f"unknown configuration key '{_join(path, name)}'{hint} Valid here: {', '.join(sorted(valid))}")
    if source := _source(field):
        raise ConfigError(f"{_join(path, name)} cannot be set: it follows from {source}. Set that instead")


def field_type(kind: type, dotted: str) -> Any:
    """The type of field `dotted`, e.g. 'data.datasets[0].path', below dataclass `kind`; ConfigError where it cannot be set."""
    seen = ""
    for part in dotted.split("."):
        name, _, index = part.partition("[")
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"unknown configuration key '{dotted}': '{seen}' is a single value, it has no fields")
        check_name(kind, name, seen)
        kind, seen = typing.get_type_hints(kind)[name], _join(seen, name)
        if index:
            if typing.get_origin(kind) is not tuple:
                raise ConfigError(f"configuration key '{seen}' is not a sequence, so '{part}' does not exist")
            kind = typing.get_args(kind)[0]
    return kind


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _source(entry: dataclasses.Field) -> str:
    declaration = entry.metadata.get("declaration")
    return declaration.derived_from if declaration is not None else ""


def _valid_names(kind: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(kind) if not _source(entry)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _convert(expected: Any, value: Any, path: str) -> Any:
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        return build(expected, value, path)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {_show(value)}, expected {type_name(expected)}")
        return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {_show(value)}, expected {type_name(expected)}")
        return {str(name): _convert(arguments[1], item, _join(path, str(name))) for name, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(option for option in arguments if option is not type(None)), value, path)
    if expected is float and type(value) in (int, float):
        if not -LARGEST <= value <= LARGEST:
            raise ConfigError(f"{path} is {value}, expected a finite number, and none above {LARGEST}")
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{path} is {_show(value)}, expected {type_name(expected)}")
    return value


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
