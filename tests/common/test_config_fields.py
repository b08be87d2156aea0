"""Declarations of configuration fields, and the trees of plain values that become dataclasses."""

import dataclasses

import pytest

from vpp_jax.common.config_fields import FREE, Setting, check_ranges, derived, group, groups, setting, settings
from vpp_jax.common.config_tree import build, field_type, to_tree
from vpp_jax.common.errors import ConfigError
from vpp_jax.config import to_config_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    """What is inside.

    More about it.
    """

    sizes: tuple[int, ...] = setting((2, 3), "sizes", at_least=2)
    limit: int | None = setting(None, "limit", at_most=9)
    rate: float = setting(0.5, "rate", more_than=0, less_than=1)
    width: int = derived(8, "width", "sizes")

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Outer:
    """All of it."""

    kind: str = setting("one", "kind", choices=("one", "two"), on_resume=FREE)
    inner: Inner = group(Inner)
    many: tuple[Inner, ...] = setting((), "several")

    def __post_init__(self):
        check_ranges(self)


def test_declarations_are_found_with_their_values():
    first, second, third = groups(Outer(inner=Inner(limit=4)))
    assert [one.name for one in (first, second, third)] == ["", "inner", "many[i]"]
    assert (second.description, second.details) == ("What is inside.", "More about it.")
    assert [entry.name for entry in settings(Outer(many=(Inner(), Inner())))] == [
        "kind",
        "many",
        *(f"{where}.{name}" for where in ("inner", "many[0]", "many[1]") for name in ("sizes", "limit", "rate")),
    ]
    sizes, limit, rate = second.settings
    assert isinstance(sizes, Setting)
    assert (sizes.type_name, sizes.declaration.range, limit.type_name, limit.value) == ("sequence of int", "at least 2", "int or none", 4)
    assert (rate.type_name, rate.declaration.range) == ("float", "more than 0 and less than 1")
    assert first.settings[0].declaration.range == "one of one, two"
    assert [(entry.name, entry.declaration.derived_from) for entry in second.derived] == [("inner.width", "sizes")]


def test_optional_fields_take_a_value_on_the_command_line():
    assert to_config_dict(Outer()).inner.get_type("limit") is int
    assert build(Outer, {"inner": {"limit": 3}}).inner.limit == 3
    assert build(Outer, {"inner": {"limit": None}}).inner.limit is None


def test_only_optional_fields_may_be_none():
    with pytest.raises(ConfigError, match=r"^sizes is None, expected at least 2"):
        Inner(sizes=None)


def test_infinite_and_undefined_numbers_are_refused():
    for value in (float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"^rate is (inf|nan), expected more than 0 and less than 1"):
            Inner(rate=value)
        with pytest.raises(ConfigError, match=r"^inner\.rate is (inf|nan), expected a finite number"):
            build(Outer, {"inner": {"rate": value}})


def test_derived_fields_are_neither_set_nor_written():
    assert to_tree(Outer()) == {"kind": "one", "inner": {"sizes": (2, 3), "limit": None, "rate": 0.5}, "many": ()}
    with pytest.raises(ConfigError, match=r"^inner\.width cannot be set: it follows from sizes\. Set that instead"):
        build(Outer, {"inner": {"width": 9}})
    with pytest.raises(ConfigError, match=r"^inner\.width cannot be set"):
        field_type(Outer, "inner.width")
    assert build(Outer, to_tree(Outer())) == Outer()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"inner": {"sizes": (2, 1)}}, r"inner\.sizes is \(2, 1\), expected every entry to be at least 2"),
        ({"inner": {"limit": 10}}, r"inner\.limit is 10, expected at most 9"),
        ({"many": [{}, {"limit": 10}]}, r"many\[1\]\.limit is 10"),
        ({"kind": "on"}, r"kind is 'on', expected one of one, two, did you mean 'one'"),
    ],
)
def test_ranges_name_the_dotted_field(tree, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, tree)
