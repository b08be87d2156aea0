"""The conversion report: what happened to every tensor of a published checkpoint."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vpp_jax.common.errors import VppError

SHOWN = 5


class ConversionError(VppError):
    """A published checkpoint that cannot be imported, or a checkpoint that cannot be exported."""


@dataclass
class ConversionReport:
    """One list per outcome, of published names.

    Attributes:
      source: the file or folder.
      wrong_shape: name -> "[shape], expected [shape]", or the same of types.
      dropped: name -> why it is not used.
      allowed: missing or unexpected names that the user allowed.
      notes: further remarks for the user.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def allow(self, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        """Moves the missing and unexpected names that a pattern fully matches to `allowed`."""
        for names, patterns in ((self.missing, missing), (self.unexpected, unexpected)):
            try:
                compiled = [re.compile(pattern) for pattern in patterns]
            except re.error as error:
                raise ConversionError(f"'{error.pattern}' is not a regular expression: {error}") from None
            permitted = [name for name in names if any(pattern.fullmatch(name) for pattern in compiled)]
            names[:] = [name for name in names if name not in permitted]
            self.allowed += permitted

    def check(self) -> None:
        """ConversionError with all lists if a tensor is missing, unexpected or of another shape."""
        if self.missing or self.unexpected or self.wrong_shape:
            raise ConversionError(
                f"{self.source} does not fit the model: {self._faults()}. --allow_missing=PATTERN fills missing tensors with zeros, "
                "--allow_unexpected=PATTERN ignores tensors (regular expressions that match full names)"
            )

    def _faults(self) -> str:
        wrong = [f"{name} {text}" for name, text in self.wrong_shape.items()]
        lists = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape or type", wrong))
        return "; ".join(f"{len(names)} {title}{_first(names)}" for title, names in lists)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} loaded; {self._faults()}; {len(self.dropped)} dropped; {len(self.allowed)} allowed"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"  dropped {len(names)} ({reason}){_first(names)}" for reason, names in reasons.items()]
        lines += [f"  allowed{_first(self.allowed)}"] if self.allowed else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _first(names: Sequence[str] | Mapping[str, str]) -> str:
    names = list(names)
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""
