"""In what a score was measured: stands beside it in results.json, in the terminal and in the report."""

from collections.abc import Mapping
from typing import Any

CHOICES = ("quality", "reset_version")  # of the protocol's description, where the simulator has them


def conditions(simulator: str, hello: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Simulator, version and renderer as the simulator itself names them, and the choices of the protocol.

    Args:
      simulator: its name.
      hello: what its process told when it started; may be empty.
    """
    told = {"version": hello.get("environment_version", ""), "renderer": hello.get("renderer", "")}
    return {"simulator": simulator, **told, **{name: protocol[name] for name in CHOICES if name in protocol}}


def conditions_text(results: Mapping[str, Any]) -> str:
    """The conditions of a results.json in one line; '' where it has none."""
    found = results.get("conditions") or {}
    words = {"version": "version {}", "quality": "quality {}", "reset_version": "reset {}", "renderer": "renderer {}"}
    parts = [found.get("simulator", ""), *(text.format(found[name]) for name, text in words.items() if found.get(name))]
    return ", ".join(part for part in parts if part)
