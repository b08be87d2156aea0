"""Pickles read as data: what they name is listed, and nothing of it is imported or called."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from malicious import attacks

from vpp_jax.common import inert_pickle, object_array, torch_archive
from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.inert_pickle import Call, Global, read_pickle
from vpp_jax.interop import torch_file

NAMES = list(attacks(Path("x")))


def anything(name: Global) -> bool:
    return True


@pytest.mark.parametrize("attack", NAMES)
def test_the_same_pickles_do_run_in_pickle_itself(tmp_path, attack):
    """Without this the tests of refusal could pass on harmless files."""
    canary = tmp_path / "canary"
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=attacks(canary)[attack], timeout=60, check=False, capture_output=True)
    assert canary.exists()


@pytest.mark.parametrize("attack", NAMES)
def test_even_allowed_names_are_never_called(tmp_path, attack):
    """With every name permitted the result is a tree of records, or an opcode is unknown; the canary stays away."""
    canary = tmp_path / "canary"
    data = attacks(canary)[attack]
    if attack in ("reduce, protocol 0", "INST", "OBJ"):
        with pytest.raises(FileFormatError, match="opcode"):
            read_pickle(data, anything, "x")
    else:
        tree = read_pickle(data, anything, "x")
        assert isinstance(tree["model"] if isinstance(tree, dict) else tree, Call | dict)
    assert not canary.exists()


def test_the_reader_has_no_means_to_run_anything():
    """No import machinery, attribute lookup by name, evaluation or unpickler anywhere in its modules."""
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "getattr",
        "setattr",
        "globals",
        "locals",
        "vars",
        "open",
        "Unpickler",
        "load",
        "loads",
        "import_module",
        "find_class",
        "system",
        "Popen",
    }
    for module in (inert_pickle, torch_archive, torch_file, object_array):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & forbidden
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "importlib", "os", "subprocess", "builtins", "runpy", "operator", "torch"}


def test_every_truncation_and_random_bytes_give_the_one_error(archive, fabricated, tmp_path):
    data = fabricated.pickled({"model": archive.state_dict({"x": np.ones(2, np.float32)}), "args": fabricated.omegaconf({"a": [1]})})
    rng = np.random.default_rng(0)
    damaged = [data[:length] for length in range(len(data))]
    for _ in range(500):
        noise = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            noise[place] = rng.integers(0, 256)
        damaged.append(bytes(noise))
    refused = 0
    for content in damaged:
        try:
            read_pickle(content, torch_file_allows, "x")
        except FileFormatError:
            refused += 1
    assert refused >= len(data)


def torch_file_allows(name: Global) -> bool:
    return name.name in torch_archive.ALLOWED.get(name.module, ())
