"""What counts as an instruction: one text, or several for the same clip, of which every epoch draws one."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import DataError


def instructions_of(value: Any, where: str) -> tuple[str, ...]:
    """The instructions in a value that a file holds: a text, UTF-8 bytes, or a list, tuple or array of these, each once, in their order.

    Empty texts are left out, so the result may be empty. DataError, which begins with `where`, for anything else.
    """
    entries = np.asarray(value, object).ravel().tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(entries, list | tuple):
        entries = [entries]
    texts = [_text(entry, where) for entry in entries]
    return tuple(dict.fromkeys(text for text in texts if text))


def flat_list(values: Any) -> list:
    """The entries of nested lists and arrays, or the one value that is neither."""
    return [entry for value in values for entry in flat_list(value)] if isinstance(values, list | np.ndarray) else [values]


def one_instruction(value: Any, where: str) -> str:
    """The same where there can be one only; '' for none."""
    texts = instructions_of(value, where)
    if len(texts) > 1:
        raise DataError(f"{where}: {len(texts)} texts, expected one")
    return "".join(texts)


def draw(instructions: Sequence[str], example: int, epoch: int) -> str:
    """The instruction of an example in an epoch."""
    if len(instructions) == 1:
        return instructions[0]
    return instructions[int(np.random.default_rng((example, epoch)).integers(len(instructions)))]


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: bytes that are not UTF-8 at {error.start}: {value[:40]!r}") from None
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a text or a list of texts, found {str(value)[:60]} ({type(value).__name__})")
    if any(unicodedata.category(character) == "Cs" for character in value):
        raise DataError(f"{where}: half of a character that takes two (a lone surrogate): {value[:60]!r}")
    return " ".join(value.replace("\ufeff", "").split())
