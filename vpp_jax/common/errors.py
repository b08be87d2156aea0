"""The base class of user errors.

Every exception class of this project is one: its message is one paragraph with what was expected, what was found, where, and how to fix
it. The command line prints it without a traceback; any other exception is a bug and is printed with its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class VppError(Exception):
    """An error that the user can fix; the message says how."""


class ConfigError(VppError, ValueError):
    """An invalid configuration."""


class FileFormatError(VppError):
    """A file that is damaged or has another format."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar known name as a clause ', did you mean ...?', or '' if none is similar."""
    return did_you_mean(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6))


def did_you_mean(names: Sequence[str]) -> str:
    """The names as a clause ', did you mean ... or ...?', or '' if there are none."""
    return f", did you mean {' or '.join(map(repr, names))}?" if names else ""
