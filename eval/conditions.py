"""In what a score was measured: stands beside it in results.json, in the terminal and in the report."""

from collections.abc import Mapping
from typing import Any

CHOICES = ("quality", "reset_version", "static_size", "gripper_size")  # of the protocol's description, where the simulator has them


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


def differences(recorded_in: Mapping[str, Any], conditions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Where a policy's data was recorded under other conditions: name -> what it was `trained` on, and what is `evaluated`.

    What only one side knows is not compared, and of another simulator neither version nor quality.
    """
    same = recorded_in.get("simulator") == conditions.get("simulator")
    names = [name for name in recorded_in if name in conditions and (same or name not in ("version", "quality"))]
    return {name: {"trained": recorded_in[name], "evaluated": conditions[name]} for name in names if recorded_in[name] != conditions[name]}


def differences_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The differences in one line; '' for none."""
    parts = [f"{name} {values['trained']} (here {values['evaluated']})" for name, values in found.items()]
    return f"the policy was trained on data of other conditions: {', '.join(parts)}" if parts else ""
