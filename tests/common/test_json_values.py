"""Values as JSON, their hash, and nested groups as dotted names."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from vpp_jax.common.json_values import config_hash, flatten_dict, to_jsonable


@dataclasses.dataclass(frozen=True)
class Pair:
    first: int
    second: tuple[float, ...]


def test_values_become_what_json_knows():
    value = {
        "a": np.float32(0.5),
        3: np.arange(2),
        "path": Path("x/y"),
        "set": {"b", "a"},
        "nan": math.nan,
        "pair": Pair(1, (0.5, math.inf)),
    }
    assert to_jsonable(value) == {
        "a": 0.5,
        "3": [0, 1],
        "path": "x/y",
        "set": ["a", "b"],
        "nan": None,
        "pair": {"first": 1, "second": [0.5, None]},
    }


def test_unknown_types_are_refused():
    with pytest.raises(TypeError, match="no place in a JSON file"):
        to_jsonable({"object": object()})


def test_the_hash_ignores_order_and_containers_only():
    assert config_hash({"a": 1, "b": (1, 2)}) == config_hash({"b": [1, 2], "a": np.int64(1)})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash(Pair(1, (2.0,))) == config_hash({"first": 1, "second": [2.0]})


def test_nested_groups_become_dotted_names():
    assert flatten_dict({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
