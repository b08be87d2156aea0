"""The base of errors whose message is meant for the person at the terminal.

Every exception class this project defines is such an error: one paragraph that says what was expected, what came, where, and what to
do. The command line prints those without a traceback; any other exception is a defect and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class VppError(Exception):
    """Something the user can put right; the message says how."""


class ConfigError(VppError, ValueError):
    """A configuration that cannot be used."""


class FileFormatError(VppError):
    """A file of tensors that is damaged or is something else."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar known name as a clause ', did you mean ...?', or '' where none is similar."""
    return did_you_mean(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6))


def did_you_mean(names: Sequence[str]) -> str:
    """The names as a clause ', did you mean ... or ...?', or '' where there are none."""
    return f", did you mean {' or '.join(map(repr, names))}?" if names else ""
