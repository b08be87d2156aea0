"""Fabricated published checkpoints for the tests of conversion."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fabricated():
    """The module tests/interop/fabricated.py."""
    spec = importlib.util.spec_from_file_location("fabricated", Path(__file__).with_name("fabricated.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
