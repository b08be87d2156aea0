"""One declaration per configuration field: type, default, range, description, and what it may do when a run resumes.

    @dataclass(frozen=True)
    class TrainConfig:
        '''Length and cadence.'''

        steps: int = setting(100_000, "optimizer updates", at_least=1, on_resume=ANNOUNCED)

        def __post_init__(self):
            check_ranges(self)

The checks, `--help`, the reference page and the rule for resuming are read from these declarations.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vpp_jax.common.errors import ConfigError, nearest


class OnResume(StrEnum):
    """What happens where a run resumes with another value of a field than it was started with."""

    FREE = "free"  # nothing: the parameters at a step do not depend on it
    ANNOUNCED = "announced"  # the run resumes; both values are printed and logged
    FIXED = "fixed"  # the run is refused; the error has both values


FREE, ANNOUNCED, FIXED = OnResume
LARGEST = 2**31 - 1  # of any number: seeds fit into 32 bits, and no wait overflows a clock


class FieldError(ConfigError):
    """A value out of range; the message begins with the field's name, which `build` completes to its dotted name."""


@dataclass(frozen=True)
class Declaration:
    """What `setting` and `derived` say about a field, apart from its type and default. Of a sequence, ranges hold for each element."""

    description: str
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    choices: tuple[str, ...] = ()
    on_resume: OnResume = FIXED
    derived_from: str = ""

    @property
    def range(self) -> str:
        """The allowed values in words; '' where every value of the type is."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = (("at least", self.at_least), ("more than", self.more_than), ("at most", self.at_most), ("less than", self.less_than))
        return " and ".join(f"{words} {bound:.10g}" for words, bound in bounds if bound is not None)

    def expected(self, value: Any) -> str:
        """What `value` should have been, for an error: it is not allowed."""
        entries, each = (value, "every entry to be ") if isinstance(value, tuple) else ((value,), "")
        large = any(isinstance(entry, int | float) and LARGEST < abs(entry) < math.inf for entry in entries)
        hint = nearest(value, self.choices) if isinstance(value, str) else ""
        return f"expected {each}{self.range or 'a finite number'}{f', and none above {LARGEST}' if large else ''}{hint}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(self.allows, value))
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:  # NaN is not
            return False
        return (
            (not self.choices or value in self.choices)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )


@dataclass(frozen=True)
class Setting:
    """One field of a tree of configuration dataclasses, as `settings` finds it. `name` is dotted: 'train.steps'."""

    name: str
    type: Any
    value: Any
    declaration: Declaration

    @property
    def type_name(self) -> str:
        return type_name(self.type)


@dataclass(frozen=True)
class Group:
    """The fields of one dataclass. `description` is the first paragraph of its docstring, `details` the rest of it."""

    name: str
    description: str
    details: str
    settings: tuple[Setting, ...]
    derived: tuple[Setting, ...]


# --- declaring --------------------------------------------------------------------------------------------------------------------


def setting(
    default: Any,
    description: str,
    *,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    less_than: float | None = None,
    choices: tuple[str, ...] = (),
    on_resume: OnResume = FIXED,
) -> Any:
    """A dataclass field that configuration files and flags may set."""
    declaration = Declaration(description, at_least, more_than, at_most, less_than, choices, on_resume)
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def derived(default: Any, description: str, source: str) -> Any:
    """A dataclass field that no file or flag sets: it follows from others, which `source` names. `default` holds where nothing does so."""
    return dataclasses.field(default=default, metadata={"declaration": Declaration(description, derived_from=source)})


def group(factory: Callable[[], Any]) -> Any:
    """A dataclass field that is itself a group of fields; its docstring describes it."""
    return dataclasses.field(default_factory=factory)


# --- checking ---------------------------------------------------------------------------------------------------------------------


def check_ranges(config: Any) -> None:
    """FieldError for the first field of a configuration dataclass whose value is outside the range it is declared with."""
    for entry in dataclasses.fields(config):
        declaration, value = entry.metadata.get("declaration"), getattr(config, entry.name)
        if declaration is None or (value is None and entry.default is None):  # a group; an optional field
            continue
        if value is None or not declaration.allows(value):
            shown = f"'{value}'" if isinstance(value, str) else value
            raise FieldError(f"{entry.name} is {shown}, {declaration.expected(value)}")


# --- walking ----------------------------------------------------------------------------------------------------------------------


def groups(config: Any, name: str = "") -> Iterator[Group]:
    """The groups of a configuration dataclass, itself first, with the values it holds.

    Of a sequence of groups each entry is one; of an empty sequence one entry '[i]' with its defaults.
    """
    hints, own, derived, below = typing.get_type_hints(type(config)), [], [], []
    for entry in dataclasses.fields(config):
        dotted, value = f"{name}.{entry.name}" if name else entry.name, getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            below.append((dotted, value))
            continue
        declaration = entry.metadata["declaration"]
        (derived if declaration.derived_from else own).append(Setting(dotted, hints[entry.name], value, declaration))
        if element := element_group(hints[entry.name]):
            below += [(f"{dotted}[{index}]", item) for index, item in enumerate(value)] or [(f"{dotted}[i]", element())]
    description, _, details = (inspect.getdoc(type(config)) or "").partition("\n\n")
    yield Group(name, " ".join(description.split()), details, tuple(own), tuple(derived))
    for dotted, value in below:
        yield from groups(value, dotted)


def settings(config: Any) -> Iterator[Setting]:
    """Every field of a configuration dataclass and of the groups below it that files and flags may set."""
    for one in groups(config):
        yield from one.settings


def element_group(kind: Any) -> type | None:
    """The dataclass of a field that is a sequence of groups; None for other fields."""
    element = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    return element if isinstance(element, type) and dataclasses.is_dataclass(element) else None


def type_name(kind: Any) -> str:
    """'int', 'sequence of str', 'table of float', 'int or none', ..."""
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return "sequence of groups" if element_group(kind) else f"sequence of {type_name(element)}"
    if typing.get_origin(kind) is dict:
        return f"table of {type_name(typing.get_args(kind)[1])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("none" if option is type(None) else type_name(option) for option in typing.get_args(kind))
    return getattr(kind, "__name__", str(kind))
