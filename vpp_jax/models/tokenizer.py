"""CLIP's byte-pair encoding, from a wheel that carries the vocabulary. Free of JAX: data workers and simulators' hosts use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from instant_clip_tokenizer import Tokenizer
from jaxtyping import Bool, Int

START_OF_TEXT = 49406
END_OF_TEXT = 49407
VOCABULARY_SIZE = 49408


@cache
def _byte_pair_encoder() -> Tokenizer:
    """The merge tables, built once per process (about 40 ms). Kept out of `CLIPTokenizer` so that it pickles."""
    return Tokenizer()


@dataclass(frozen=True)
class CLIPTokenizer:
    """Sentences -> token ids and mask, both `length` wide, as Hugging Face's CLIPTokenizer gives them with padding='max_length'.

    A row is start-of-text, the sentence, end-of-text, then padding. Padding is the end-of-text token itself (the mask tells them
    apart; the first one is the real one). A sentence that is too long loses its tail but keeps its end token.
    """

    length: int = 77

    def __post_init__(self):
        if not 3 <= self.length <= 77:
            raise ValueError(f"text length must be in [3, 77] (start, at least one token, end; CLIP has 77 positions), got {self.length}")

    def __call__(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """-> (ids int32, mask bool, True on start, sentence and end tokens). Raises ValueError for a sentence without a token."""
        if isinstance(texts, str):
            raise TypeError(f"expected a list of sentences, got one string: {texts!r}")
        ids = np.full((len(texts), self.length), END_OF_TEXT, np.int32)
        mask = np.zeros((len(texts), self.length), bool)
        for row, text in enumerate(texts):
            tokens = _byte_pair_encoder().encode(text)[: self.length - 2]
            if not tokens:
                raise ValueError(f"instruction {row} of {len(texts)} is empty ({text!r}); every example needs a sentence")
            ids[row, : len(tokens) + 1] = [START_OF_TEXT, *tokens]
            mask[row, : len(tokens) + 2] = True
        return ids, mask

    def decode(self, ids: Int[np.ndarray, "b l"], mask: Bool[np.ndarray, "b l"]) -> list[str]:
        """Sentences as the encoding kept them: lower case, punctuation set apart, cut to `length`."""
        sentence = lambda tokens: _byte_pair_encoder().decode([int(token) for token in tokens if token < START_OF_TEXT]).strip()  # noqa: E731
        return [sentence(row[kept]) for row, kept in zip(np.asarray(ids), np.asarray(mask), strict=True)]
